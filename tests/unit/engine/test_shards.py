"""Flat layouts of optimizer groups, against buffers that are really filled and cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_engine.engine.shards import FlatLayout, SavedShards, ShardError


def cut(sizes: list[int], ranks: int, round_robin: bool, alignment: int) -> list[np.ndarray]:
    """The parts of all ranks, made as DeepSpeed describes it; element e of parameter p is 1000 * (p + 1) + e."""
    numbered = [(number, 1000 * (number + 1) + np.arange(size)) for number, size in enumerate(sizes)]
    if round_robin:
        numbered.sort(key=lambda pair: (pair[0] % ranks, pair[0]))
    flat = np.zeros(0, int)
    for _, values in numbered:
        flat = np.concatenate([flat, np.zeros(-len(flat) % alignment, int), values])
    flat = np.concatenate([flat, np.zeros(-len(flat) % (2 * ranks), int)])
    return np.split(flat, ranks)


layouts = st.tuples(st.integers(1, 5), st.booleans(), st.sampled_from([1, 4, 8]))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), layouts, layouts)
def test_parts_of_one_layout_are_copied_into_those_of_another(sizes, old, new):
    before, wanted = cut(sizes, *old), cut(sizes, *new)
    was, now = (
        FlatLayout.of(sizes, ranks, round_robin=order, parameter_alignment=unit) for ranks, order, unit in (old, new)
    )
    assert {len(part) for part in before} == {was.partition} and {len(part) for part in wanted} == {now.partition}
    for rank, part in enumerate(wanted):
        found = np.zeros(now.partition, int)
        for old_rank, old_start, start, elements in now.copies_from(was, rank):
            assert not found[start : start + elements].any(), "written once"
            found[start : start + elements] = before[old_rank][old_start : old_start + elements]
        assert found.tolist() == part.tolist()


@pytest.mark.parametrize("names", [[], ["zero_pp_rank_1_mp_rank_00_optim_states.pt"], ["mp_rank_00_model_states.pt"]])
def test_a_folder_without_all_shards_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ShardError, match="they are not all there"):
        SavedShards(tmp_path, ())
