"""Validation, agreement and the training loop over real ranks."""

import math

import pytest

SEEN = "validation.numbers"


def all_seen(engines) -> list:
    return sorted(example for rank in engines(SEEN) for example in rank["seen"])


@pytest.fixture(scope="module")
def wanted_examples(tiny):
    """What the ranks were given, as they write it down."""
    counts = (9, 4)
    return sorted(
        (dataset, tuple(one.context_ids.tolist()))
        for dataset, count in enumerate(counts)
        for one in tiny.examples(count, "blenderbot", dataset)
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_sees_every_example_once(on_1, on_2, on_3, wanted_examples, world_size):
    engines = {1: on_1, 2: on_2, 3: on_3}[world_size]
    assert all_seen(engines) == wanted_examples
    batches = {rank["batches"] for rank in engines(SEEN)}
    assert batches == {math.ceil(13 / (2 * world_size))}, "ranks must call the sharded teacher equally often"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_gives_the_same_numbers_at_any_world_size(on_1, on_2, on_3, world_size):
    (alone,) = on_1(SEEN)
    wanted = {"ppl", "ppl_micro", "first/ppl", "second/teacher_agreement", "teacher_ppl", "first/teacher_ppl", "total"}
    assert wanted <= set(alone["values"])
    assert sum(name.startswith("term/") for name in alone["values"]) == 10
    for rank in {1: on_1, 2: on_2, 3: on_3}[world_size](SEEN):
        assert rank["values"] == pytest.approx(alone["values"], rel=1e-6)
        assert rank["again"] == rank["values"], "dropout is on, or something was left over"
        assert rank["blocks"] == pytest.approx(alone["values"], rel=2e-6), "logits in blocks are other logits"


def test_all_ranks_have_the_very_same_numbers(on_2, on_3):
    for engines in (on_2, on_3):
        first, *others = (rank["values"] for rank in engines(SEEN))
        assert all(values == first for values in others)


def test_a_validation_that_is_not_a_number_is_never_best(on_2):
    for rank in on_2("trainer.not_finite"):
        assert rank == {"best": None, "published": [], "bad": 1}


@pytest.mark.parametrize("world_size", [2, 3])
def test_agree_finds_a_rank_that_is_apart(on_2, on_3, world_size):
    for rank, found in enumerate({2: on_2, 3: on_3}[world_size]("trainer.ranks_apart")):
        assert found["together"] == (True, 100.0)
        assert found["calm"] == (False, 200.0)
        steps = (10 if rank == world_size - 1 else 9, 20 + rank)
        for step, said in zip(steps, found["said"], strict=True):
            assert f"rank {rank} is at step {step}" in said


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_nothing_is_lost(on_2):
    ranks = on_2("trainer.stop_on_one_rank")
    assert ranks[0] == ranks[1], "the ranks disagree"
    stopped, continued, calm = (ranks[0][part] for part in ("stopped", "continued", "calm"))
    assert (stopped["reason"], stopped["steps"]) == ("stop_requested", 3)
    assert "step-00000003" in stopped["checkpoints"]
    assert (continued["reason"], continued["steps"]) == ("max_steps", 6)
    assert stopped["diary"] + continued["diary"] == calm["diary"]
    for key in ("digest", "position", "best", "steps"):
        assert continued[key] == calm[key], key


def test_a_run_that_only_skips_gives_up_with_its_weights_untouched(on_2):
    ranks = on_2("trainer.hopeless")
    assert ranks[0] == ranks[1]
    found = ranks[0]
    assert "3 optimizer steps in a row were skipped" in found["said"]
    assert "all loss terms were finite, the gradient was not" in found["said"], "the backward pass alone is spoilt"
    assert (found["attempts"], found["steps"], found["moved"]) == (3, 0, False)


def test_samples_of_unequal_lengths_are_scored_by_a_teacher_in_shards(on_2):
    """One rank's prompts end at once, the other's run to the limit; some steps have no task at all."""
    first, second = on_2("rollouts.unequal")
    for window in (False, True):
        for one, other in zip(first[window]["steps"], second[window]["steps"], strict=True):
            assert one["sampled"] == other["sampled"] and one["digest"] == other["digest"]
            assert one["applied"] and one["finite"] and other["finite"]
            pairs = zip(one["sampled"], one["lengths"], other["lengths"], strict=True)
            assert all((short, long) == ([1, 1], [20, 20]) for own, short, long in pairs if own)
        assert first[window]["training"] and second[window]["training"]
    sampled = [step["sampled"] for step in first[False]["steps"]]
    assert [True, True] in sampled and any(False in step for step in sampled)
    assert [step["digest"] for step in first[False]["steps"]] != [first[False]["steps"][0]["digest"]] * 3
