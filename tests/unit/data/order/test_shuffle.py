"""A shuffle is a permutation, whatever its size; it costs no memory above the table's size; keys tell them apart."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.data.order.shuffle import TABLE_SIZE, key_of, shuffled, walked


@given(st.integers(1, 3000), st.integers(0, 1000), st.sampled_from([shuffled, walked]))
@settings(max_examples=60, deadline=None)
def test_every_element_comes_once(size, seed, shuffle):
    places = shuffle(np.arange(size), size, key_of("a", seed))
    assert sorted(places.tolist()) == list(range(size))


@given(st.integers(2, 2000), st.data())
@settings(max_examples=30, deadline=None)
def test_an_element_does_not_depend_on_what_else_is_asked_for(size, data):
    index = data.draw(st.integers(0, size - 1))
    for shuffle in (shuffled, walked):
        whole = shuffle(np.arange(size), size, key_of(1))
        assert shuffle(np.array([index]), size, key_of(1))[0] == whole[index]


@pytest.mark.parametrize("size", [5, 7, 8])
def test_walking_is_uniform_in_every_place(size):
    # 2000 shuffles: each element in each place about 2000 / size times; six standard deviations
    seen: Counter[tuple[int, int]] = Counter()
    for number in range(2000):
        seen.update(enumerate(walked(np.arange(size), size, key_of("uniform", number)).tolist()))
    expected = 2000 / size
    slack = 6 * (expected * (1 - 1 / size)) ** 0.5
    assert all(abs(seen[place, element] - expected) < slack for place in range(size) for element in range(size))


def test_neighbours_end_up_far_apart():
    size = 100_000
    places = walked(np.arange(size), size, key_of("apart"))
    steps = np.abs(np.diff(places)) / size
    assert abs(steps.mean() - 1 / 3) < 0.01  # two independent places are a third of the way apart
    assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 0.02


def test_a_billion_elements_cost_no_table():
    size = 10**9 + 7
    indices = np.random.default_rng(0).integers(0, size, 5000)
    tracemalloc.start()
    places = shuffled(indices, size, key_of("big"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert len(set(places.tolist())) == len(set(indices.tolist())) and 0 <= places.min() <= places.max() < size
    assert abs(places.mean() / size - 0.5) < 0.03


def test_other_keys_are_other_shuffles_and_the_two_kinds_are_pinned():
    """A change here breaks the resuming of old checkpoints: raise the loader's state version with it."""
    first, second = (shuffled(np.arange(100), 100, key_of(word)) for word in ("one", "two"))
    assert (first != second).any()
    assert shuffled(np.arange(6), 6, key_of("pinned", 1)).tolist() == PINNED_TABLE
    assert shuffled(np.arange(4), TABLE_SIZE + 1, key_of("pinned", 1)).tolist() == PINNED_WALK


PINNED_TABLE = [1, 2, 3, 4, 5, 0]
PINNED_WALK = [752152, 297581, 337773, 135629]
