"""How a step is shared out among ranks."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distill_engine.data.errors import DataError
from distill_engine.data.order.split import BatchSplit

counts = st.integers(1, 24)


@given(counts, counts, counts, counts, st.booleans())
def test_a_step_stays_what_it_is_on_any_number_of_ranks(rows, accumulation, ranks, others, budget):
    own = BatchSplit(rows, accumulation, ranks, budget)
    assume(own.per_step % others == 0)
    there = own.shared_by(others, own.per_step)
    assert there.per_step == own.per_step and there.identity == own.identity
    assert there.world_size == others and there.per_rank <= rows, "no rank needs more memory than the recipe says"
    assert BatchSplit(rows, accumulation, others, budget).shared_by(ranks, there.per_step) == own, "and back"


@pytest.mark.parametrize(
    ("own", "ranks", "per_step", "wanted"),
    [
        (BatchSplit(16, 1, 3), 2, 48, (12, 2)),
        (BatchSplit(16, 1, 3), 1, 48, (16, 3)),
        (BatchSplit(16, 1, 3), 48, 48, (1, 1)),
        (BatchSplit(3, 1, 2), 3, 6, (2, 1)),
        (BatchSplit(4, 1, 7), 4, 28, (1, 7)),  # 7 rows each: no smaller number of them divides it
        (BatchSplit(4, 3, 2, True), 1, 6, (4, 6)),
    ],
)
def test_shares(own, ranks, per_step, wanted):
    split = own.shared_by(ranks, per_step)
    assert (split.per_rank, split.accumulation_steps) == wanted


def test_what_cannot_be_shared_is_refused_with_the_numbers_of_ranks_that_can():
    with pytest.raises(DataError, match=r"48 examples, which 5 ranks cannot.* 1, 2, 3, 4, 6, 8, 12, 16, 24, 48\."):
        BatchSplit(16, 1, 5).shared_by(5, 48)
    with pytest.raises(DataError, match=r"6 micro-batches, which 4 ranks cannot share. Under batch.max_tokens"):
        BatchSplit(16, 1, 4, True).shared_by(4, 6)
    with pytest.raises(DataError, match=r"numbers of ranks: 588, .* 980, 990, .*1386 \(there are more\)"):
        BatchSplit(16, 1, 1000).shared_by(1000, 55440 * 7)


def test_it_reads_well():
    assert str(BatchSplit(12, 2, 2)) == "48 examples a step = 12 per rank x 2 accumulation steps x 2 ranks"
    assert str(BatchSplit(12, 2, 3, True)) == "6 micro-batches a step = 2 accumulation steps x 3 ranks"
    assert BatchSplit(12, 2, 2).identity == {"examples_per_step": 48}
    assert BatchSplit(12, 2, 3, True).identity == {"micro_batches_per_step": 6}
