"""Gradients that are not finite, in every precision, and fp16 with its dynamic loss scale, on two real ranks."""

import pytest

from distill_engine.engine.student import StepOutcome

DTYPES = {
    "fp32": "torch.float32",
    "fp32_offloaded": "torch.float32",
    "bf16": "torch.bfloat16",
    "fp16": "torch.float16",
    "fp16_offloaded": "torch.float16",
}


@pytest.mark.parametrize("how", DTYPES)
def test_one_bad_loss_on_one_rank_is_as_if_that_step_had_never_been(on_2, how):
    ranks = [rank[how] for rank in on_2("precision.poisoned")]
    assert ranks[0] == ranks[1], "the ranks disagree"
    bad, good = ranks[0]["with"], ranks[0]["without"]
    assert bad["dtype"] == DTYPES[how]
    first, skipped, third = bad["outcomes"]
    assert (first.applied, skipped.applied, third.applied) == (True, False, True)
    assert skipped == StepOutcome(False, None, first.loss_scale)
    before, after_first, after_skipped, after_third = bad["digests"]
    assert len({before, after_first, after_third}) == 3
    assert after_skipped == after_first
    assert [before, after_first, after_third] == good["digests"]
    assert (first.grad_norm, third.grad_norm) == tuple(one.grad_norm for one in good["outcomes"])


def story(on_2, part):
    ranks = [rank[part] for rank in on_2("precision.fp16_story")]
    assert ranks[0] == ranks[1], "the ranks disagree"
    return ranks[0]


def test_overflow_skips_steps_on_all_ranks_and_they_do_not_count(on_2):
    whole = story(on_2, "whole")
    assert all(rank["supported"] for rank in on_2("precision.fp16_story"))
    applied = [entry["applied"] for entry in whole["diary"]]
    assert applied == [True, True, False, False, True, True, True, True]
    assert [entry["moved"] for entry in whole["diary"]] == applied
    assert (whole["reason"], whole["steps"], whole["skipped"]) == ("max_steps", 6, 2)
    assert whole["position"] == 8 * 4, "skipped steps used up their examples"


def test_the_schedule_waits_for_applied_steps(on_2):
    rates = on_2("precision.fp16_story")[0]["rates"]
    assert len(set(rates)) == 6
    used = [entry["learning_rate"] for entry in story(on_2, "whole")["diary"]]
    assert used == [*rates[:2], rates[2], rates[2], rates[2], *rates[3:]]


def test_the_scale_falls_after_two_overflows_and_rises_again(on_2):
    diary = story(on_2, "whole")["diary"]
    assert [entry["scale"] for entry in diary] == [256, 256, 256, 256, 128, 128, 128, 256]
    assert [entry["scale_after"] for entry in diary] == [256, 256, 256, 128, 128, 128, 256, 256]


def test_a_checkpoint_keeps_the_scale_and_all_else(on_2):
    whole, first, second = (story(on_2, part) for part in ("whole", "first", "second"))
    assert (first["steps"], first["skipped"], first["diary"][-1]["scale_after"]) == (3, 2, 128)
    assert first["diary"] + second["diary"] == whole["diary"]
    for key in ("steps", "skipped", "digest", "position", "best"):
        assert second[key] == whole[key], key


def test_a_scale_that_cannot_fall_any_further_ends_the_run_with_advice(on_2):
    ranks = on_2("precision.fp16_floor")
    assert ranks[0] == ranks[1]
    assert ranks[0]["scales"] == [2.0]
    assert not ranks[0]["moved"]
    said = ranks[0]["said"]
    assert "loss scale of 1," in said
    assert "fp16.min_loss_scale" in said and "ds_configs/zero2_bf16.json" in said


def test_int8_begins_at_its_step_and_resuming_there_changes_no_bit(on_2):
    """In fp16, with a step of int8 that overflows: ranks agree, and the plain steps are those of a run without it."""
    ranks = on_2("precision.int8_story")
    assert ranks[0] == ranks[1], "the ranks disagree"
    whole, first, second, never = (ranks[0][part] for part in ("whole", "first", "second", "never"))
    assert (first["steps"], second["steps"], whole["skipped"]) == (3, 6, 1)
    assert first["diary"] + second["diary"] == whole["diary"]
    for key in ("digest", "position", "best", "steps"):
        assert second[key] == whole[key], key
    alike = [one == other for one, other in zip(whole["diary"], never["diary"], strict=True)]
    assert alike[:4] == [True, True, True, False] and whole["digest"] != never["digest"]
    assert all(step["moved"] for step in whole["diary"] if step["applied"])
    assert ranks[0]["same_names"], "a checkpoint of such a student is no other"
