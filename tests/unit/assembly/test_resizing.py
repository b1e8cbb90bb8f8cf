"""What a start with another number of ranks finds out from the newest checkpoint, before anything is loaded."""

import shutil

import pytest

from distill_engine.assembly.resizing import ResizeError, batch_split
from distill_engine.checkpoint.checkpoints import Checkpoints
from distill_engine.checkpoint.retention import Retention
from distill_engine.recipe.schema import Recipe


class Ranks:
    """Rank 0 of so many, of which the others say the same."""

    rank = 0

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size

    def gather(self, value):
        return [value] * self.world_size


class Nothing:
    def save(self, folder):
        (folder / "rank_00000.txt").write_text("x")


def recipe(**sections) -> Recipe:
    return Recipe.model_validate(
        {"name": "x", "data": {"datasets": [{"name": "demo"}]}, "optimizer": {"learning_rate": 1e-3}, **sections}
    )


PLAIN = recipe(batch={"per_rank": 4, "accumulation_steps": 3})


@pytest.fixture
def written(tmp_path):
    """Writes a checkpoint: `written(step, ranks, identity)`."""

    def write(step: int, ranks: int, identity: dict) -> None:
        checkpoints = Checkpoints(tmp_path, Ranks(1), identity=identity, keep=Retention(9))
        checkpoints._ranks.world_size = ranks
        assert checkpoints.save(step, {"part": Nothing()})

    return write


def test_a_fresh_run_follows_the_recipe(tmp_path):
    for resize in (False, True):
        split, lines = batch_split(PLAIN, tmp_path / "none", Ranks(2), resize=resize)
        assert (split.per_rank, split.accumulation_steps, split.world_size, lines) == (4, 3, 2, [])


def test_the_same_number_of_ranks_needs_no_flag(tmp_path, written):
    written(5, 2, {"examples_per_step": 24})
    for resize in (False, True):
        split, lines = batch_split(PLAIN, tmp_path, Ranks(2), resize=resize)
        assert (split.per_rank, split.accumulation_steps, lines) == (4, 3, [])


def test_another_number_is_refused_without_the_flag_and_shared_out_with_it(tmp_path, written):
    written(5, 2, {"examples_per_step": 24})
    with pytest.raises(ResizeError, match=r"was written by 2 ranks, this run has 3\..*--resize .RESIZE=1"):
        batch_split(PLAIN, tmp_path, Ranks(3), resize=False)
    split, lines = batch_split(PLAIN, tmp_path, Ranks(3), resize=True)
    assert (split.per_rank, split.accumulation_steps) == (4, 2)
    assert lines == [
        "going on with 3 ranks instead of 2: same examples in each step",
        "24 examples a step = 4 per rank x 2 accumulation steps x 3 ranks (the recipe: 4 x 3)",
    ]
    with pytest.raises(ResizeError, match=r"24 examples, which 5 ranks cannot share"):
        batch_split(PLAIN, tmp_path, Ranks(5), resize=True)


def test_once_resized_the_number_of_examples_stays(tmp_path, written):
    written(5, 2, {"examples_per_step": 24})
    written(9, 8, {"examples_per_step": 24})
    split, lines = batch_split(PLAIN, tmp_path, Ranks(8), resize=False)
    assert (split.per_rank, split.accumulation_steps, len(lines)) == (3, 1, 1)


def test_a_checkpoint_that_does_not_say_is_of_the_recipe(tmp_path, written):
    written(5, 4, {})
    split, _ = batch_split(PLAIN, tmp_path, Ranks(2), resize=True)
    assert split.per_step == 48


def test_an_unreadable_manifest_is_passed_over(tmp_path, written):
    written(5, 2, {"examples_per_step": 24})
    written(6, 3, {"examples_per_step": 24})
    (tmp_path / "step-00000006" / "manifest.json").write_text("{")
    assert batch_split(PLAIN, tmp_path, Ranks(2), resize=False)[0].world_size == 2
    shutil.rmtree(tmp_path / "step-00000005")
    assert batch_split(PLAIN, tmp_path, Ranks(7), resize=False)[0].world_size == 7, "resuming tells what is wrong"


def test_under_a_token_budget_micro_batches_are_shared_out(tmp_path, written):
    written(5, 2, {"micro_batches_per_step": 6})
    budget = recipe(batch={"max_tokens": 4096, "accumulation_steps": 3})
    split, lines = batch_split(budget, tmp_path, Ranks(6), resize=True)
    assert split.accumulation_steps == 1 and "6 micro-batches a step" in lines[1]
    with pytest.raises(ResizeError, match=r"6 micro-batches, which 4 ranks cannot share"):
        batch_split(budget, tmp_path, Ranks(4), resize=True)


def test_parlais_losses_depend_on_the_ranks_and_that_is_said(tmp_path, written):
    written(5, 2, {"examples_per_step": 24})
    parlai = recipe(batch={"per_rank": 4, "accumulation_steps": 3}, losses={"definition": "parlai"})
    assert "losses.definition is parlai" in batch_split(parlai, tmp_path, Ranks(1), resize=True)[1][-1]
    assert batch_split(parlai, tmp_path, Ranks(2), resize=True)[1] == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    split, _ = batch_split(PLAIN, tmp_path / "file", Ranks(2), resize=True)
    assert split.world_size == 2, "the run folder's own check tells what is wrong"
