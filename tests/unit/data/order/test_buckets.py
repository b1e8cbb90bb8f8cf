"""Batches with a token budget: little padding, the mixture's examples and no others, whatever the world size."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import dialogue_lengths
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.data.errors import DataError
from distill_engine.data.order.buckets import PlainPlan, SortedStepPlan, TokenBudgetPlan
from distill_engine.data.order.loader import TrainLoader, lengths_in, token_budget_plan
from distill_engine.data.order.mixture import Mixture, example_weights
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import TokenisedDataset, TokenLimits

BART = SequenceLayout(1, 0, 2, (0,), (2,), (2, 0), 1)
BLENDERBOT = SequenceLayout(0, 1, 2, (), (2,), (1,), 0)


def uneven(size: int, seed: int, layout: SequenceLayout = BLENDERBOT) -> TokenisedDataset:
    """A dataset whose example i has the label [10 + i], and a context of 1 to 40 tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 38, size)
    tokens = np.concatenate([np.append(np.full(length, 5), 10 + i) for i, length in enumerate(lengths)])
    ends = np.cumsum(lengths + 1)
    bounds = np.stack([ends - lengths - 1, ends - 1, ends - 1, ends], axis=1)
    return TokenisedDataset(tokens.astype(np.int32), bounds.astype(np.int64), layout, TokenLimits(128, 8))


def plan_of(datasets, mixture: Mixture, budget: int = 300, window: int = 64, multiple: int = 1) -> TokenBudgetPlan:
    return token_budget_plan(
        datasets, mixture, datasets[0].layout, max_tokens=budget, window=window, pad_to_multiple_of=multiple
    )


def loader_of(datasets, mixture, accumulation_steps: int = 1, rank: int = 0, world_size: int = 1, **options):
    return TrainLoader(
        datasets,
        mixture,
        datasets[0].layout,
        per_rank=1,
        accumulation_steps=accumulation_steps,
        pad_to_multiple_of=options.get("multiple", 1),
        rank=rank,
        world_size=world_size,
        plan=plan_of(datasets, mixture, **options),
    )


def rows(batch) -> list[tuple[int, int]]:
    """(dataset, example) of each row."""
    firsts = batch.labels[:, 0].tolist()
    return list(zip(batch.dataset_ids.tolist(), [first - 10 for first in firsts], strict=True))


def sorted_step(datasets, mixture, rows: int, ranks: int) -> SortedStepPlan:
    return SortedStepPlan(mixture, rows, lengths_in(datasets), ranks)


@pytest.fixture(scope="module")
def datasets():
    return [uneven(150, 0), uneven(70, 1)]


@pytest.fixture(scope="module")
def mixture():
    return Mixture([150, 70], [2.0, 1.0], seed=3)


@given(st.integers(60, 900), st.integers(1, 100), st.sampled_from([1, 8]), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_windows_hold_the_mixtures_examples_and_batches_keep_to_the_budget(budget, window, multiple, seed):
    datasets = [uneven(150, 0, BART), uneven(70, 1, BART)]
    mixture = Mixture([150, 70], [2.0, 1.0], seed)
    with loader_of(datasets, mixture, budget=budget, window=window, multiple=multiple) as loader:
        seen: list[tuple[int, int]] = []
        while len(seen) < 3 * window:
            (batch,) = loader.next_group()
            assert batch.inputs.input_ids.numel() + batch.labels.numel() <= budget or len(batch.dataset_ids) == 1
            seen += batch_rows(batch)
            assert loader.examples == len(seen)
    for number in range(3):
        part = slice(number * window, (number + 1) * window)
        drawn = [mixture.at(position) for position in range(part.start, part.stop)]
        assert Counter(seen[part]) == Counter(drawn)


def batch_rows(batch) -> list[tuple[int, int]]:
    """(dataset, example) of each row of a BART batch: -100, the word, the end token, then padding."""
    return list(zip(batch.dataset_ids.tolist(), (batch.labels[:, 1] - 10).tolist(), strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_step_sees_the_same_micro_batches_however_it_is_split(datasets, mixture, world_size):
    plan = plan_of(datasets, mixture)
    position, expected = 0, []
    for _ in range(4):
        picks = plan.take(position, 24)
        expected.append([list(zip(part.datasets.tolist(), part.examples.tolist(), strict=True)) for part in picks])
        position += sum(len(part.datasets) for part in picks)
    ranks = [loader_of(datasets, mixture, 24 // world_size, rank, world_size) for rank in range(world_size)]
    for step in expected:
        groups = [[rows(batch) for batch in loader.next_group()] for loader in ranks]
        assert {len(group) for group in groups} == {24 // world_size}
        assert [part for micro in zip(*groups, strict=True) for part in micro] == step
    assert {loader.examples for loader in ranks} == {position}
    for loader in ranks:
        loader.close()


@given(st.integers(0, 25), st.sampled_from([1, 2, 3]), st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_resuming_at_any_step_and_world_size_goes_on_as_if_never_stopped(datasets, mixture, steps, world_size, seed):
    with loader_of(datasets, mixture, accumulation_steps=6) as whole:
        for _ in range(steps):
            whole.next_group()
        state = json.loads(json.dumps(whole.state_dict()))
        wanted = [rows(batch) for batch in whole.next_group()]
    seen = []
    for rank in range(world_size):
        with loader_of(datasets, mixture, 6 // world_size, rank, world_size) as resumed:
            resumed.load_state_dict(state)
            seen.append([rows(batch) for batch in resumed.next_group()])
    assert [part for micro in zip(*seen, strict=True) for part in micro] == wanted


def test_a_pass_loses_and_repeats_nothing(datasets):
    mixture = Mixture([150, 70], example_weights([1, 1], [150, 70], [150, 70], "passes"), seed=9)
    with loader_of(datasets, mixture, window=55) as loader:  # 220 examples are four windows
        seen: list[tuple[int, int]] = []
        while loader.epoch < 1:
            seen += [row for batch in loader.next_group() for row in rows(batch)]
    assert sorted(seen) == [(dataset, example) for dataset, size in enumerate((150, 70)) for example in range(size)]


def test_other_batches_have_another_fingerprint_and_plain_ones_the_mixtures(datasets, mixture):
    names = {plan_of(datasets, mixture, *options).fingerprint for options in ((300, 64), (301, 64), (300, 63))}
    assert len(names) == 3
    assert PlainPlan(mixture, 4).fingerprint == mixture.fingerprint not in names


def test_a_state_of_other_batches_is_refused(datasets, mixture):
    with loader_of(datasets, mixture) as loader, loader_of(datasets, mixture, budget=500) as other:
        loader.next_group()
        with pytest.raises(DataError, match=r"batch\.max_tokens have changed"):
            other.load_state_dict(loader.state_dict())
        ends = np.cumsum([len(part.datasets) for part in plan_of(datasets, mixture).take(0, 4)])
        inside = next(position for position in range(1, int(ends[-1])) if position not in ends)
        with pytest.raises(DataError, match=rf"position {inside} is inside a micro-batch"):
            loader.load_state_dict({**loader.state_dict(), "position": inside})
        assert loader.examples == ends[0]


@pytest.mark.parametrize(
    ("sizes", "weights", "window"),
    [
        ([10, 500], [1.0, 1.0], 22),  # half of the draws are ten examples: 11 draws of them, one comes twice
        ([100], [1.0], 105),
        ([4, 4000], [1.0, 60.0], 400),  # a little dataset that comes round often makes up little of a window
        ([4000, 4000], [1.0, 1.0], 400),
    ],
)
def test_windows_are_smaller_where_examples_would_come_round_again(sizes, weights, window):
    datasets = [uneven(size, number) for number, size in enumerate(sizes)]
    plan = plan_of(datasets, Mixture(sizes, weights, seed=0), budget=2000, window=400)
    assert plan.fingerprint.endswith(f"/{window}")


def test_rows_are_cut_where_one_more_would_pass_the_budget_and_all_they_cost_is_counted(mixture):
    plan = plan_of([uneven(150, 0), uneven(70, 1)], mixture, budget=24)
    contexts, labels = [4, 4, 4, 9, 30, 2, 7], [2, 2, 4, 3, 5, 1, 1]
    cuts, positions = plan._filled(contexts, labels)
    # 3 rows of 4 + 4 are the budget exactly; 9 + 3 would pass it; 30 + 5 alone passes it, and is one run all the same
    assert cuts == [3, 4, 5]
    runs = [range(0, 3), range(3, 4), range(4, 5), range(5, 7)]
    cost = [len(run) * (max(contexts[i] for i in run) + max(labels[i] for i in run)) for run in runs]
    assert cost == [24, 12, 35, 16] and positions == sum(cost)
    assert plan._filled([30], [5]) == ([], 35)


# -- the four datasets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("multiple", "most"), [(1, 0.06), (8, 0.09)])
def test_padding_of_the_four_tasks_and_shares_of_their_mixture(multiple, most):
    datasets = dialogue_lengths.four_datasets(0.3)
    sizes = [len(dataset) for dataset in datasets]
    episodes = [dataset.episodes for dataset in datasets]
    weights = example_weights(dialogue_lengths.PARLAI_WEIGHTS, sizes, episodes, "episodes")
    mixture = Mixture(sizes, weights, seed=1)
    assert mixture.shares == pytest.approx([0.125, 0.270, 0.494, 0.111], abs=0.01)
    plan = plan_of(datasets, mixture, budget=(128 + 128) * 16, window=8192, multiple=multiple)
    real = padded = 0
    drawn = np.zeros(4, np.int64)
    for part in islice(plan._from(0), 500):
        sums = [datasets[dataset].lengths(part.examples[part.datasets == dataset]) for dataset in range(4)]
        contexts, labels = (np.concatenate(side) for side in zip(*sums, strict=True))
        longest = [-(-int(side.max()) // multiple) * multiple for side in (contexts, labels)]
        assert len(contexts) * sum(longest) <= 4096
        real += int(contexts.sum() + labels.sum())
        padded += len(contexts) * sum(longest)
        drawn += np.bincount(part.datasets, minlength=4)
    assert 1 - real / padded < most
    # 500 micro-batches are about two windows: the whole ones are exact, of the last some batches are missing
    assert drawn / drawn.sum() == pytest.approx(mixture.shares, abs=0.01)


@pytest.mark.parametrize(("rows", "ranks", "accumulation"), [(8, 1, 4), (4, 2, 4), (3, 3, 2), (5, 2, 1)])
def test_a_sorted_step_has_the_plain_ones_examples_with_less_padding(datasets, mixture, rows, ranks, accumulation):
    plain, ordered = PlainPlan(mixture, rows), sorted_step(datasets, mixture, rows, ranks)
    count, padded = ranks * accumulation, {"plain": 0, "sorted": 0}
    lengths = lengths_in(datasets)
    firsts = set()
    for step in range(12):
        position = step * count * rows
        both = {"plain": plain.take(position, count), "sorted": ordered.take(position, count)}
        drawn = {name: [(d, e) for one in of_plan for d, e in zip(*one, strict=True)] for name, of_plan in both.items()}
        assert Counter(drawn["sorted"]) == Counter(drawn["plain"])
        assert [len(one.datasets) for one in both["sorted"]] == [rows] * count
        for name, of_plan in both.items():
            longest = [int(lengths(one.datasets, one.examples)[0].max()) for one in of_plan]
            # the ranks wait for the longest of each moment
            padded[name] += sum(max(longest[at : at + ranks]) for at in range(0, count, ranks))
        moments = [int(lengths(one.datasets, one.examples)[0].max()) for one in both["sorted"][::ranks]]
        firsts.add(sorted(moments).index(moments[0]))
    assert padded["sorted"] < padded["plain"] if accumulation > 1 else padded["sorted"] == padded["plain"]
    assert len(firsts) > 1 or accumulation == 1  # no length always comes first
    assert ordered.fingerprint == plain.fingerprint
    again = sorted_step(datasets, mixture, rows, ranks).take(3 * count * rows, count)
    assert [one.examples.tolist() for one in again] == [
        one.examples.tolist() for one in ordered.take(3 * count * rows, count)
    ]


def test_ranks_of_a_sorted_step_get_lengths_alike(datasets, mixture):
    plan, lengths = sorted_step(datasets, mixture, 4, 2), lengths_in(datasets)
    for one, other in zip(*(plan.take(0, 8)[rank::2] for rank in range(2)), strict=True):
        mine, theirs = (np.sort(lengths(part.datasets, part.examples)[0]) for part in (one, other))
        assert (mine[1:] >= theirs[:-1]).all() and (theirs[1:] >= mine[:-1]).all()
