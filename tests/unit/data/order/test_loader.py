"""Batches against a plain computation; splits over ranks; resuming; the background thread's failures."""

from __future__ import annotations

import json
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.data.errors import DataError
from distill_engine.data.order.ahead import AheadLoader
from distill_engine.data.order.collate import Picks, collate, filler_batch
from distill_engine.data.order.loader import TrainLoader, ValidationLoader
from distill_engine.data.order.mixture import Mixture
from distill_engine.data.order.prefetch import Prefetcher
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import Example, TokenLimits
from distill_engine.values import IGNORED_LABEL, Batch

BLENDERBOT = SequenceLayout(0, 1, 2, (), (2,), (1,), 0)
BART = SequenceLayout(1, 0, 2, (0,), (2,), (2, 0), 1)


def example(context: list[int], label: list[int]) -> Example:
    return Example(np.array(context, np.int32), np.array(label, np.int32))


class Numbered:
    """A dataset whose example i says who it is: its context is [10 + i] repeated, its label [10 + i, 2]."""

    def __init__(self, size: int, broken_from: int | None = None) -> None:
        self._size = size
        self._broken_from = broken_from

    def __len__(self) -> int:
        return self._size

    @property
    def limits(self) -> TokenLimits:
        return TokenLimits(10**6, 10**6)

    @property
    def context_lengths(self) -> np.ndarray:
        return np.array([1 + i % 5 for i in range(self._size)], np.int64)

    @property
    def label_lengths(self) -> np.ndarray:
        return np.full(self._size, 2, np.int64)

    def example(self, index: int) -> Example:
        if self._broken_from is not None and index >= self._broken_from:
            raise OSError(f"example {index} cannot be read")
        return example([10 + index] * (1 + index % 5), [10 + index, 2])


def picks(batch: Batch) -> list[tuple[int, int]]:
    """(dataset, index) of each row that counts."""
    counts = batch.label_mask.any(1)
    rows = zip(batch.dataset_ids[counts].tolist(), batch.inputs.input_ids[counts][:, 0].tolist(), strict=True)
    return [(dataset, first - 10) for dataset, first in rows]


def train_loader(sizes: list[int], per_rank: int, steps: int, rank: int, world_size: int) -> TrainLoader:
    mixture = Mixture(sizes, [1.0] * len(sizes), seed=7)
    return TrainLoader(
        [Numbered(size) for size in sizes],
        mixture,
        BLENDERBOT,
        per_rank=per_rank,
        accumulation_steps=steps,
        pad_to_multiple_of=1,
        rank=rank,
        world_size=world_size,
    )


def taken(loader: TrainLoader, groups: int) -> list[list[tuple[int, int]]]:
    """The picks of each micro-batch of the next groups."""
    return [picks(batch) for _ in range(groups) for batch in loader.next_group()]


# -- collate -----------------------------------------------------------------------------------------------------


def test_blenderbot_batch():
    picks = Picks(np.array([0, 3]), np.array([6, 1]))
    batch = collate([example([5, 6, 2], [7, 8, 2]), example([9, 2], [4, 2])], BLENDERBOT, 1, picks=picks)
    assert batch.inputs.input_ids.tolist() == [[5, 6, 2], [9, 2, 0]]
    assert batch.inputs.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.decoder_input_ids.tolist() == [[1, 7, 8], [1, 4, 0]]
    assert batch.labels.tolist() == [[7, 8, 2], [4, 2, -100]]
    assert (batch.dataset_ids.tolist(), batch.example_ids.tolist()) == ([0, 3], [6, 1])
    dtypes = []
    batch.each(lambda tensor: dtypes.append(tensor.dtype) or tensor)
    assert set(dtypes) == {torch.int64} and len(dtypes) == 6


def test_bart_batch():
    batch = collate([example([0, 6, 2], [7, 8, 2]), example([0, 9, 6, 2], [4, 2])], BART, 1)
    assert batch.inputs.input_ids.tolist() == [[0, 6, 2, 1], [0, 9, 6, 2]]
    assert batch.decoder_input_ids.tolist() == [[2, 0, 7, 8], [2, 0, 4, 1]]
    assert batch.labels.tolist() == [[-100, 7, 8, 2], [-100, 4, 2, -100]]


def test_a_pad_id_inside_a_context_is_not_padding():
    assert collate([example([0, 5], [2])], BLENDERBOT, 1).inputs.attention_mask.tolist() == [[1, 1]]


@pytest.mark.parametrize(("layout", "extra"), [(BLENDERBOT, 0), (BART, 1)])
def test_lengths_are_rounded_up_as_parlai_does(layout, extra):
    batch = collate([example([5] * 9, [7] * 8 + [2])], layout, 8)
    assert batch.inputs.input_ids.shape == (1, 16)
    assert batch.labels.shape == batch.decoder_input_ids.shape == (1, 16 + extra)
    # never beyond what was checked against the position tables
    cut = collate([example([5] * 9, [7] * 8 + [2])], layout, 8, TokenLimits(12, 9))
    assert cut.inputs.input_ids.shape == (1, 12) and cut.labels.shape == (1, 9 + extra)


@pytest.mark.parametrize("layout", [BLENDERBOT, BART])
def test_a_filler_batch_counts_for_nothing_but_can_be_attended(layout):
    batch = filler_batch(layout)
    assert not batch.label_mask.any() and batch.context_mask.any()
    assert batch.decoder_input_ids.shape == batch.labels.shape and len(batch.dataset_ids) == 1


# -- Training order ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_step_sees_the_same_examples_however_it_is_split(world_size):
    expected = Mixture([40, 17], [1.0, 1.0], seed=7)
    for accumulation_steps in (24 // world_size, 1):
        per_rank = 24 // (world_size * accumulation_steps)
        ranks = [train_loader([40, 17], per_rank, accumulation_steps, rank, world_size) for rank in range(world_size)]
        for step in range(4):
            groups = [[picks(batch) for batch in loader.next_group()] for loader in ranks]
            joined = [pick for micro in zip(*groups, strict=True) for part in micro for pick in part]
            assert joined == [expected.at(position) for position in range(24 * step, 24 * step + 24)]
        for loader in ranks:
            loader.close()


@given(st.integers(0, 30), st.sampled_from([1, 2, 3, 8]), st.integers(1, 3), st.data())
@settings(max_examples=25, deadline=None)
def test_resuming_at_any_step_goes_on_as_if_never_stopped(steps, world_size, accumulation_steps, data):
    rank = data.draw(st.integers(0, world_size - 1))
    with train_loader([23, 9], 2, accumulation_steps, rank, world_size) as whole:
        taken(whole, steps)
        state = json.loads(json.dumps(whole.state_dict()))
        with train_loader([23, 9], 2, accumulation_steps, rank, world_size) as resumed:
            taken(resumed, data.draw(st.integers(0, 3)))
            resumed.load_state_dict(state)
            assert resumed.position == whole.position == whole.examples == steps * 2 * accumulation_steps * world_size
            assert taken(resumed, 3) == taken(whole, 3)


def test_another_world_size_goes_on_where_the_first_stopped():
    with train_loader([50], 2, 1, 0, 3) as three:
        taken(three, 5)
        state = three.state_dict()
    expected = Mixture([50], [1.0], seed=7)
    with train_loader([50], 4, 1, 0, 2) as left, train_loader([50], 4, 1, 1, 2) as right:
        for loader in (left, right):
            loader.load_state_dict(state)
        assert taken(left, 1) + taken(right, 1) == [
            [expected.at(position) for position in range(30, 34)],
            [expected.at(position) for position in range(34, 38)],
        ]


def test_position_and_epoch_count_what_was_handed_out_not_what_waits():
    with train_loader([10], 2, 2, 0, 1) as loader:
        assert (loader.position, loader.epoch) == (0, 0.0)
        groups = taken(loader, 5)
        assert (loader.position, loader.epoch) == (20, 2.0)
        assert Counter(pick for micro in groups for pick in micro) == {(0, i): 2 for i in range(10)}


def test_states_that_do_not_fit():
    with train_loader([10], 2, 1, 0, 1) as loader:
        good = loader.state_dict()
        assert good["version"] == 1 and good["position"] == 0
        for wrong, words in [
            ({"version": 2}, "version 2"),
            ({"mixture": "other"}, "data order is 'other'"),
            ({"position": -1}, "position in the checkpoint is -1"),
            ({"position": "7"}, "position in the checkpoint is '7'"),
        ]:
            with pytest.raises(DataError, match=words):
                loader.load_state_dict({**good, **wrong})
        with pytest.raises(DataError, match="version None"):
            loader.load_state_dict({})
        assert len(loader.next_group()) == 1


def test_a_failure_in_the_background_is_raised_and_stays():
    mixture = Mixture([10], [1.0], seed=7)
    first_bad = next(position for position in range(10) if mixture.at(position)[1] >= 8)
    options = {"per_rank": 1, "accumulation_steps": 1, "pad_to_multiple_of": 1, "rank": 0, "world_size": 1}
    with TrainLoader([Numbered(10, broken_from=8)], mixture, BLENDERBOT, **options) as loader:
        taken(loader, first_bad)
        for _ in range(2):
            with pytest.raises(OSError, match="cannot be read"):
                loader.next_group()
        assert loader.position == first_bad


def test_closing_ends_the_thread_and_may_be_repeated():
    before = set(threading.enumerate())
    loader = train_loader([10], 2, 1, 0, 1)
    assert set(threading.enumerate()) == before
    loader.next_group()
    loader.close()
    loader.close()
    assert set(threading.enumerate()) == before


def test_mistakes_of_the_caller():
    with pytest.raises(ValueError, match="mixture is for"):
        TrainLoader(
            [Numbered(9)],
            Mixture([10], [1.0], 0),
            BLENDERBOT,
            per_rank=1,
            accumulation_steps=1,
            pad_to_multiple_of=1,
            rank=0,
            world_size=1,
        )
    with pytest.raises(ValueError, match="rank 2 of 2"):
        ValidationLoader([Numbered(9)], BLENDERBOT, per_rank=1, rank=2, world_size=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pinned_batches_are_the_same_batches():
    mixture = Mixture([10], [1.0], seed=7)
    options = {"per_rank": 4, "accumulation_steps": 1, "pad_to_multiple_of": 1, "rank": 0, "world_size": 1}
    loaders = [TrainLoader([Numbered(10)], mixture, BLENDERBOT, **options, pin_memory=pin) for pin in (True, False)]
    for (pinned,), (plain,) in zip(*(iter([loader.next_group() for _ in range(3)]) for loader in loaders), strict=True):
        pairs: list[list[torch.Tensor]] = [[], []]
        for batch, seen in zip((pinned, plain), pairs, strict=True):
            batch.each(lambda tensor, seen=seen: seen.append(tensor) or tensor)
        assert all(one.is_pinned() and torch.equal(one, other) for one, other in zip(*pairs, strict=True))
    for loader in loaders:
        loader.close()


# -- Validation --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 7), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_every_example_exactly_once_and_equally_many_batches(sizes, per_rank, world_size):
    datasets = [Numbered(size) for size in sizes]
    loaders = [
        ValidationLoader(datasets, BLENDERBOT, per_rank=per_rank, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [list(loader) for loader in loaders]
    assert {len(part) for part in batches} == {len(loaders[0])}
    assert all(len(batch.dataset_ids) <= per_rank for part in batches for batch in part)
    seen = sorted(pick for part in batches for batch in part for pick in picks(batch))
    assert seen == [(dataset, index) for dataset, size in enumerate(sizes) for index in range(size)]


def test_rows_of_a_batch_are_equally_long_as_far_as_it_goes():
    loader = ValidationLoader([Numbered(50), Numbered(50)], BLENDERBOT, per_rank=20, rank=0, world_size=1)
    batches = list(loader)
    assert [set(batch.inputs.attention_mask.sum(1).tolist()) for batch in batches] == [{5}, {4}, {3}, {2}, {1}]
    assert all(set(batch.dataset_ids.tolist()) == {0, 1} for batch in batches)
    assert [picks(batch) for batch in loader] == [picks(batch) for batch in batches]  # a second pass is the same


def test_ranks_without_examples_get_fillers():
    parts = [list(ValidationLoader([Numbered(2)], BART, per_rank=4, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(picks(part[0])) for part in parts] == [1, 1, 0]
    assert (parts[2][0].labels == IGNORED_LABEL).all()


def test_leaving_a_validation_pass_early_ends_its_thread():
    before = set(threading.enumerate())
    batches = iter(ValidationLoader([Numbered(30)], BLENDERBOT, per_rank=1, rank=0, world_size=1))
    next(batches)
    batches.close()
    assert set(threading.enumerate()) == before


# -- Prefetcher --------------------------------------------------------------------------------------------------


def test_products_come_in_order_and_only_a_few_ahead():
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    prefetcher = Prefetcher(make, count=6, ahead=2)
    assert [prefetcher.take() for _ in range(3)] == [0, 1, 2]
    prefetcher.close()
    assert made in ([0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2])


# ---- looked at before it is taken (teacher.overlap) --------------------------------------------------------------

AHEAD_STEPS = 7  # of 12 examples, 1 or 4 batches of two each: over the end of several epochs


def said(loader):
    return loader.examples, loader.epoch, loader.state_dict()


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("resumed_at", [None, 3])
def test_looking_ahead_changes_nothing(accumulation, resumed_at):
    plain = train_loader([12], 2, accumulation, 0, 1)
    ahead = AheadLoader(train_loader([12], 2, accumulation, 0, 1), torch.device("cpu"))
    with plain:
        for step in range(AHEAD_STEPS):
            assert said(ahead) == said(plain)
            if step == resumed_at:
                state = ahead.state_dict()
                ahead.close()
                ahead = AheadLoader(train_loader([12], 2, accumulation, 0, 1), torch.device("cpu"))
                ahead.upcoming()  # of the beginning, which a resumed run forgets
                ahead.load_state_dict(state)
            group = ahead.next_group()
            assert [picks(batch) for batch in group] == [picks(batch) for batch in plain.next_group()]
            if step % 3 != 2:
                before = said(ahead)
                first = ahead.upcoming()
                assert ahead.upcoming() is first and said(ahead) == before
    assert plain.epoch > 1
    ahead.close()


def test_what_never_comes_is_not_looked_at_and_an_error_waits_for_its_step():
    loader = train_loader([12], 2, 1, 0, 1)
    ahead = AheadLoader(loader, torch.device("cpu"))
    first = ahead.next_group()
    ahead.goes_on = lambda: False
    before = said(loader)
    assert ahead.upcoming() is None and said(loader) == before
    ahead.goes_on = lambda: True
    make, loader._prefetcher = loader._prefetcher, Prefetcher(lambda _: picks(first[0]).no_such_thing)
    assert ahead.upcoming() is None, "the run may end before it needs this"
    with pytest.raises(AttributeError, match="no_such_thing"):
        ahead.next_group()
    assert said(ahead) == before
    make.close()
    ahead.close()
