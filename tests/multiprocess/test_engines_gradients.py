"""Losses and gradients of the real engines: they depend on the examples of a step, and on nothing else."""

import pytest
import torch

from distill_engine.engine.ds_config import DsConfigError, load_ds_config, student_config

WAYS = ("blenderbot/whole", "blenderbot/in_two", "blenderbot/padded", "blenderbot/turned", "bart/in_two")


def agree(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_accumulation_padding_and_order_change_nothing(on_1, on_2, way, world_size):
    (alone,) = on_1("gradients.joined")
    plain = alone[way.split("/")[0] + "/plain"]
    for rank in {1: on_1, 2: on_2}[world_size]("gradients.joined"):
        found = rank[way]
        assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5)
        assert found["norms"] == pytest.approx(plain["norms"], rel=1e-5)
        agree(found["weights"], plain["weights"])


def test_three_steps_really_learn_something(on_1):
    (alone,) = on_1("gradients.joined")
    for family in ("blenderbot", "bart"):
        losses, norms = alone[f"{family}/plain"]["losses"], alone[f"{family}/plain"]["norms"]
        assert losses[2] < losses[0] and min(norms) > 1


def test_the_parlai_definition_is_the_mean_of_every_micro_batchs_own_loss(on_2):
    for found in on_2("gradients.parlai"):
        assert found["losses"] == pytest.approx(found["wanted"], rel=1e-5)
        agree(found["weights"], found["wanted_weights"])


@pytest.mark.parametrize(
    "case",
    [
        "narrow",
        "wide",
        "bart",
        "checkpointed",
        "frozen_tables",
        "projections_unused",
        "one_rank_without_labels",
    ],
)
def test_the_engine_applies_the_plain_gradient_of_the_sum_of_all_terms(on_2, case):
    for rank in on_2("gradients.single"):
        found = rank[case]
        assert found["loss"][0] == pytest.approx(found["loss"][1], rel=1e-5)
        agree(found["gradient"], found["wanted"], 2e-6)
        assert found["norm"] == pytest.approx(float(found["wanted"].norm()), rel=1e-5)
        assert not found["frozen_moved"]


def test_the_cases_are_what_they_say(on_2):
    found = on_2("gradients.single")[0]
    assert found["frozen_tables"]["trained"] == found["narrow"]["trained"] - 2
    agree(found["checkpointed"]["gradient"], found["narrow"]["gradient"], 1e-7)
    # the six projections that nothing uses
    assert int((found["projections_unused"]["wanted"] == 0).sum()) > int((found["narrow"]["wanted"] == 0).sum()) + 3000


def test_clipping_scales_the_whole_gradient(on_2):
    for rank in on_2("gradients.single"):
        found = rank["clipped"]
        norm = float(found["wanted"].norm())
        assert norm > 1
        assert found["norm"] == pytest.approx(norm, rel=1e-5)
        agree(found["gradient"], found["wanted"] * (0.5 / norm), 1e-6)


def test_a_step_without_any_label_is_harmless(on_2):
    for rank in on_2("gradients.single"):
        assert rank["nobody_has_labels"] == {"loss": 0.0, "applied": True, "moved": False}


def test_calls_out_of_order_are_refused_and_leave_the_gradient_alone(on_2):
    for found in on_2("gradients.order_of_calls"):
        said = found["said"]
        assert said["step_too_early"] == "step after 1 of 2 micro-batches of the optimizer step."
        assert "between optimizer steps" in said["save_between"]
        assert "one backward per micro-batch" in said["second_backward"]
        assert torch.equal(found["disturbed"], found["calm"])


def test_what_is_written_later_is_what_was_when_it_was_taken_down(on_2):
    for found in on_2("gradients.written_later"):
        for precision in ("fp32", "bf16"):
            later, two_steps_on = found[precision]
            assert later == []
            assert len(two_steps_on) == 3, "the module, and the shards of both ranks"


def test_a_config_that_would_let_bad_gradients_through_is_refused(root):
    base = load_ds_config(root / "ds_configs" / "zero2_bf16.json")
    base["bf16"]["check_grad_overflow"] = False
    with pytest.raises(DsConfigError, match=r"bf16\.check_grad_overflow is false"):
        student_config(
            base,
            batch_per_rank=1,
            accumulation_steps=1,
            world_size=1,
            clip_norm=None,
            fp16_supported=True,
            bf16_supported=True,
        )
