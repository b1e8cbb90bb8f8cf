"""The order is a pure function of position; shares do not drift; a pass loses and repeats nothing."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.data.errors import DataError
from distill_engine.data.order.mixture import Mixture, example_weights, mixture_line
from distill_engine.data.order.shuffle import TABLE_SIZE

sizes_and_weights = st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 100)), min_size=1, max_size=6).map(
    lambda pairs: tuple(zip(*pairs, strict=True))
)


def order(mixture: Mixture, start: int, stop: int) -> list[tuple[int, int]]:
    datasets, examples = mixture.window(start, stop)
    return list(zip(datasets.tolist(), examples.tolist(), strict=True))


@given(sizes_and_weights, st.integers(0, 2**32), st.integers(0, 30_000), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_a_position_says_the_same_wherever_one_starts_to_look(described, seed, start, length):
    sizes, weights = described
    seen = order(Mixture(sizes, weights, seed), start, start + length)
    fresh = Mixture(sizes, weights, seed)
    assert seen == [fresh.at(position) for position in range(start, start + length)]
    assert all(0 <= dataset < len(sizes) and 0 <= example < sizes[dataset] for dataset, example in seen)


@given(sizes_and_weights, st.integers(0, 1000), st.integers(0, 20_000), st.integers(1, 9000))
@settings(max_examples=40, deadline=None)
def test_shares_of_any_window_are_exact_up_to_a_few_examples(described, seed, start, length):
    sizes, weights = described
    mixture = Mixture(sizes, weights, seed)
    datasets, _ = mixture.window(start, start + length)
    for dataset, share in enumerate(mixture.shares):
        assert abs((datasets == dataset).sum() - share * length) <= 2 + 2 * len(sizes) * share


@given(sizes_and_weights, st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_within_a_task_every_example_comes_once_a_pass(described, seed):
    sizes, weights = described
    seen = order(Mixture(sizes, weights, seed), 0, 2000)
    for dataset, size in enumerate(sizes):
        mine = [example for chosen, example in seen if chosen == dataset]
        for begin in range(0, len(mine) - size + 1, size):
            assert sorted(mine[begin : begin + size]) == list(range(size))


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.integers(0, 1000), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_with_weights_proportional_to_sizes_an_epoch_is_a_pass(sizes, seed, epoch):
    mixture = Mixture(sizes, [0.37 * size for size in sizes], seed)
    assert mixture.epoch_size == sum(sizes)
    seen = order(mixture, epoch * mixture.epoch_size, (epoch + 1) * mixture.epoch_size)
    assert sorted(seen) == [(dataset, example) for dataset, size in enumerate(sizes) for example in range(size)]


def test_one_task_is_shuffled_anew_in_each_pass():
    mixture = Mixture([500], [3.0], seed=1)
    first, second = order(mixture, 0, 500), order(mixture, 500, 1000)
    assert first != second and first != sorted(first)
    assert sorted(first) == sorted(second)


def test_a_shuffle_is_uniform_in_every_place():
    # 400 passes of 5 examples: each example in each place about 80 times, standard deviation 8.
    seen = [example for _, example in order(Mixture([5], [1], seed=3), 0, 2000)]
    places = Counter((position % 5, example) for position, example in enumerate(seen))
    assert all(45 < places[place, example] < 115 for place in range(5) for example in range(5))


def test_the_interleaving_has_no_period():
    datasets, _ = Mixture([100] * 4, [1] * 4, seed=0).window(0, 4000)
    for stride in range(1, 17):
        same = float(np.mean(datasets[stride:] == datasets[:-stride]))
        assert same < 0.5, stride


def test_another_seed_is_another_order():
    described = ([300, 200], [1.0, 2.0])
    assert order(Mixture(*described, seed=1), 0, 100) != order(Mixture(*described, seed=2), 0, 100)


def test_far_positions_of_a_big_mixture():
    mixture = Mixture([27_018, 74_092, 131_438, 64_636], [0.125, 0.27, 0.494, 0.111], seed=0)
    datasets, _ = mixture.window(10**9, 10**9 + 5000)
    for dataset, share in enumerate(mixture.shares):
        assert abs((datasets == dataset).sum() - share * 5000) < 6
    assert mixture.at(10**9 + 4999) == order(mixture, 10**9 + 4999, 10**9 + 5000)[0]
    assert math.isclose(sum(mixture.shares), 1)


def test_the_order_itself_is_pinned():
    """A change here breaks the resuming of old checkpoints: raise the loader's state version with it."""
    datasets, examples = Mixture([7, 3], [2, 1], seed=11).window(0, 12)
    assert datasets.tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0]
    assert examples.tolist() == [2, 4, 0, 1, 1, 2, 5, 6, 0, 3, 1, 0]


def test_fingerprints_tell_mixtures_apart():
    same = Mixture([3, 4], [1, 2], 0).fingerprint
    assert same == Mixture((3, 4), (1.0, 2.0), 0).fingerprint
    others = [Mixture([4, 3], [1, 2], 0), Mixture([3, 4], [2, 1], 0), Mixture([3, 4], [1, 2], 1)]
    assert len({same, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(("size", "weight"), [(0, 1.0), (5, 0.0), (5, -1.0), (5, math.nan), (5, math.inf)])
def test_tasks_that_cannot_be_mixed(size, weight):
    with pytest.raises(DataError, match="Dataset number 2"):
        Mixture([3, size], [1.0, weight], 0)


def test_sizes_and_weights_belong_together():
    for sizes, weights in ([[], []], [[1, 2], [1.0]]):
        with pytest.raises(ValueError, match="one of each"):
            Mixture(sizes, weights, 0)


# ParlAI's four datasets: training episodes and examples.
EPISODES = [4_819, 18_430, 17_878, 39_057]
EXAMPLES = [27_018, 74_092, 131_438, 64_636]


def shares(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 3, 3, 3], [0.125, 0.270, 0.494, 0.111]), ([1, 1, 1, 1], [0.301, 0.216, 0.395, 0.089])],
)
def test_weights_of_episodes_give_parlais_shares_of_examples(weights, expected):
    made = example_weights(weights, EXAMPLES, EPISODES, "episodes")
    assert shares(made) == pytest.approx(expected, abs=1e-3)


def test_episode_weights_are_what_playing_whole_episodes_amounts_to():
    """Draw a dataset by weight, one of its episodes, play all its turns: the definition, simulated."""
    random = np.random.default_rng(0)
    turns = [np.array([1, 3]), np.array([2, 2, 8])]
    played = [0, 0]
    for dataset in random.choice(2, 40_000, p=[0.4, 0.6]):
        played[dataset] += random.choice(turns[dataset])
    made = example_weights([2, 3], [4, 12], [2, 3], "episodes")
    assert shares(made) == pytest.approx(shares(played), abs=0.01)


def test_the_other_meanings_and_temperature():
    assert shares(example_weights([1, 3], [10, 90], [1, 1], "examples")) == pytest.approx([0.25, 0.75])
    assert shares(example_weights([1, 1], [10, 90], [5, 1], "passes")) == pytest.approx([0.1, 0.9])
    assert shares(example_weights([1, 1], [10, 90], [5, 1], "passes", 2.0)) == pytest.approx([0.25, 0.75])
    flat = shares(example_weights([1, 1], [10, 90], [5, 1], "passes", 1e6))
    assert flat == pytest.approx([0.5, 0.5], abs=1e-3)
    assert example_weights([2.5], [10], [3], "examples") == [2.5]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_equal_weights_of_passes_show_every_example_once_an_epoch(sizes, seed):
    mixture = Mixture(sizes, example_weights([1.0] * len(sizes), sizes, sizes, "passes"), seed)
    seen = order(mixture, 0, mixture.epoch_size)
    assert sorted(seen) == [(dataset, example) for dataset, size in enumerate(sizes) for example in range(size)]


def test_a_task_too_large_for_a_table_is_shuffled_as_well():
    size = TABLE_SIZE + 5
    mixture = Mixture([size], [1.0], seed=2)
    whole = np.concatenate([mixture.window(start, min(size, start + 2**17))[1] for start in range(0, size, 2**17)])
    assert np.array_equal(np.sort(whole), np.arange(size))
    assert order(mixture, size - 3, size + 3)[:3] == [(0, int(example)) for example in whole[-3:]]


def test_the_line_that_tells_the_shares():
    line = mixture_line(["a", "b"], [1000, 3000], [0.5, 0.5])
    assert line == (
        "mixture, shares of the examples: a 50.0% (1,000 examples, each 2.00 times an epoch), "
        "b 50.0% (3,000 examples, each 0.67 times an epoch)"
    )
