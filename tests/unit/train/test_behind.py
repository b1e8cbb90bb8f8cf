"""Which rank keeps the others waiting, from what each has left."""

import pytest

from distill_engine.train.behind import leave_position, name_behind, position_file, read_positions


def position(own: int, group: tuple[int, int] | None = None, ended: int | None = None) -> dict:
    tracks = {"own": {"number": own, "ended": own if ended is None else ended, "name": "sum"}}
    if group is not None:
        tracks["3"] = {"number": group[0], "ended": group[1], "name": "nccl:all_gather"}
    return {"node": f"n{own}", "doing": f"in step {own}", "tracks": tracks}


IS, OF_3 = "is behind: it has", "collective of process group 3, number"
LOCKED = "inside a library that keeps Python's lock."
AT_9 = position(7, (9, 9))


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        ([position(7), position(6), position(7)], f"rank 1 (n6) {IS} begun our collective 6, others 7 (sum); it was"),
        ([AT_9, AT_9, position(7, (8, 8))], f"rank 2 (n7) {IS} begun {OF_3} 8, others 9 (nccl:all_gather)"),
        ([AT_9, position(7, (9, 8)), position(7)], f"rank 1 (n7) {IS} ended {OF_3} 8, others 9"),
        ([position(7, ended=6), position(7), position(7)], f"rank 0 (n7) {IS} ended our collective 6, others 7"),
        ([position(7)] * 3, "all ranks have come equally far"),
        ([position(7), position(7)], "rank 2 left no word"),
        ([position(7), position(5)], f"rank 2 left no word: dead, suspended, or {LOCKED} rank 1 (n5) is behind"),
    ],
)
def test_what_is_said(positions, said):
    assert name_behind(dict(enumerate(positions)), 3).startswith(said)


def test_many_ranks_are_counted():
    said = name_behind({rank: position(5 if rank else 9) for rank in range(64)}, 64)
    assert "rank 1 (n5), rank 2 (n5)" in said and "and 55 more is behind" in said


def test_positions_are_read_as_left_and_damaged_ones_are_none(tmp_path):
    leave_position(tmp_path, 0, position(7))
    position_file(tmp_path, 1).write_text('{"node": ')
    leave_position(tmp_path, 3, position(7))  # of an earlier start with more ranks
    assert read_positions(tmp_path, 3) == {0: position(7)}
