"""Two real ranks, killed and given damaged files: what is there afterwards still loads.

After every fault the same run is started again and must end in the state of a run that nothing happened to, equal in
every bit (weights, early stopping, all random streams of both ranks).
"""

import os
import random
import signal
from pathlib import Path

import pytest

pytestmark = pytest.mark.multiprocess

KILLED = -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / "step-00000004"


def test_resume_equals_an_undisturbed_run(server, undisturbed, stopped):
    answer = server.play(stopped)
    assert [report["resumed_from"] for report in answer["reports"]] == [4, 4]
    assert [report["final"] for report in answer["reports"]] == undisturbed
    assert undisturbed[0] != undisturbed[1]
    assert undisturbed != server.finals(stopped.with_name("other"), steps=5)


# Numbers (#) choose the second save, so that an earlier checkpoint must survive; ranks pass a point differently often.
KILLS = [
    "before_part@0#5",
    "before_part@1#4",
    "in_part@0#4",
    "in_part@0#5",
    "in_part@0#6",
    "in_part@1#3",
    "in_part@1#4",
    "after_parts@0#2",
    "after_parts@1#2",
    "in_manifest#2",
    "before_rename#2",
    "after_rename#2",
    "before_pointer#2",
    "in_prune#1",
    "in_part@1#1",
    "before_rename#1",
]


@pytest.mark.parametrize("fault", KILLS)
def test_killed_at_a_named_point(server, undisturbed, tmp_path, fault):
    killed = server.play(tmp_path, fault=fault, keep_last=1)
    assert sorted(killed["codes"]) == [KILLED, 3], "one rank killed, the other told of it"
    again = server.play(tmp_path, keep_last=1)
    assert again["codes"] == [0, 0], again
    point, _, count = fault.partition("#")
    complete = {"after_rename": 4, "before_pointer": 4, "in_prune": 4}
    expected = None if count == "1" and point != "in_prune" else complete.get(point, 2)
    for report, final in zip(again["reports"], undisturbed, strict=True):
        assert report["resumed_from"] == expected
        assert report["final"] == final
    assert names(tmp_path) == ["latest", "step-00000006"]


@pytest.mark.parametrize("fault", ["in_part@1#4", "in_part@0#5", "after_parts@0#2", "before_rename#2", "in_prune#1"])
def test_killed_while_the_second_save_is_written_in_the_background(server, undisturbed, tmp_path, fault):
    options = {"keep_last": 1, "background": True}
    assert KILLED in server.play(tmp_path, fault=fault, **options)["codes"]
    again = server.play(tmp_path, **options)
    assert again["codes"] == [0, 0], again
    assert {report["resumed_from"] for report in again["reports"]} == {4 if fault == "in_prune#1" else 2}
    assert [report["final"] for report in again["reports"]] == undisturbed
    assert names(tmp_path) == ["latest", "step-00000006"]


def test_both_ranks_killed_at_once(server, undisturbed, tmp_path):
    assert server.play(tmp_path, fault="before_part#5")["codes"] == [KILLED, KILLED]
    assert server.finals(tmp_path) == undisturbed


def test_killed_before_every_single_file_operation(server, tmp_path):
    """One rank, so that a scenario is quick enough to try all of them: two saves, the second replacing the first."""
    whole = {"world_size": 1, "steps": 2, "save_every": 1, "keep_last": 1}
    expected = server.finals(tmp_path / "whole", **whole)
    kills = 0
    while True:
        folder = tmp_path / str(kills)
        answer = server.play(folder, kill_at=kills + 1, **whole)
        if answer["codes"] == [0]:
            break
        assert answer["codes"] == [KILLED], answer
        assert server.finals(folder, **whole) == expected, f"killed before file operation {kills + 1}"
        assert names(folder)[-1] == "step-00000002"
        assert not [path for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
        kills += 1
    assert kills > 40


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(len(content)).randrange(len(content))] ^= 4
    path.write_bytes(content)


def zero_tail(path: Path) -> None:
    """What a power cut leaves of a file whose last blocks never reached the disk."""
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)


DAMAGE = {
    "zeros at the end": (lambda f: zero_tail(f / "student/zero_rank_1_states.pt"), "differs from its digest"),
    "truncated shard of rank 1": (lambda f: truncate(f / "student/zero_rank_1_states.pt"), "it is truncated"),
    "flipped bit in rank 0": (lambda f: flip(f / "student/zero_rank_0_states.pt"), "differs from its digest"),
    "flipped bit in random state": (lambda f: flip(f / "random/rank_00001.pt"), "differs from its digest"),
    "missing file": (lambda f: (f / "stopping/state.json").unlink(), "stopping/state.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_falls_back_and_says_so(server, undisturbed, stopped, damage):
    do, reason = DAMAGE[damage]
    do(newest(stopped))
    answer = server.play(stopped, patience=0.1)
    assert [report["resumed_from"] for report in answer["reports"]] == [2, 2]
    (warning,) = answer["reports"][0]["warnings"]
    assert "step-00000004" in warning and reason in warning and "step-00000002" in warning
    assert answer["reports"][1]["warnings"] == []
    assert [report["final"] for report in answer["reports"]] == undisturbed
    assert names(stopped) == ["latest", "step-00000004.1", "step-00000006"]


def test_all_damaged_is_an_error_on_every_rank_and_nothing_is_deleted(server, stopped):
    for folder in (stopped / "checkpoints").glob("step-*"):
        flip(folder / "student/zero_rank_0_states.pt")
    before = names(stopped)
    answer = server.play(stopped)
    assert answer["codes"] == [3, 3]
    for report in answer["reports"]:
        assert "None of the checkpoints" in report["error"]
        assert "step-00000002: student/zero_rank_0_states.pt differs" in report["error"]
        assert "step-00000004: student/zero_rank_0_states.pt differs" in report["error"]
    assert names(stopped) == before


@pytest.mark.parametrize("content", [None, b"", b"step-99999999\n", b"\xff\xfe"])
def test_pointer_is_never_trusted(server, undisturbed, stopped, content):
    pointer = stopped / "checkpoints" / "latest"
    pointer.unlink()
    if content is not None:
        pointer.write_bytes(content)
    assert server.finals(stopped) == undisturbed
    assert pointer.read_text() == "step-00000006\n"


def test_other_identity_is_refused_with_the_differences(server, stopped):
    answer = server.play(stopped, identity={"recipe": "b", "student.decoder_layers": 9})
    assert answer["codes"] == [3, 3]
    for report in answer["reports"]:
        assert 'recipe: "a" -> "b"' in report["error"]
        assert "student.decoder_layers: (absent) -> 9" in report["error"]


def test_other_world_size_is_refused(server, stopped):
    answer = server.play(stopped, world_size=1)
    assert answer["codes"] == [3]
    assert "written by 2 ranks, this run has 1" in answer["reports"][0]["error"]


def test_times_of_files_decide_nothing(server, undisturbed, stopped):
    """Neither a clock that jumped into the past nor equal times make an older checkpoint the newest."""
    for step, time in ((2, 2_000_000_000), (4, 86_400)):
        folder = stopped / "checkpoints" / f"step-{step:08d}"
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (time, time))
    answer = server.play(stopped)
    assert [report["resumed_from"] for report in answer["reports"]] == [4, 4]
    assert [report["final"] for report in answer["reports"]] == undisturbed


LATE = "zero_rank_1_states.pt"


@pytest.mark.parametrize("background", [False, True])
def test_a_file_that_comes_into_sight_late_is_waited_for(server, undisturbed, tmp_path, background):
    """Rank 0 completes a checkpoint whose other node's file its own node does not show yet."""
    answer = server.play(tmp_path, late={"rank": 0, "name": LATE, "looks": 4}, background=background)
    assert answer["codes"] == [0, 0] and answer["reports"][0]["warnings"] == [], answer
    assert set(answer["reports"][0]["saves"].values()) == {True}
    assert [report["final"] for report in answer["reports"]] == undisturbed


def test_a_file_that_never_comes_into_sight_costs_the_checkpoint_and_is_named(server, undisturbed, tmp_path):
    answer = server.play(tmp_path, late={"rank": 0, "name": LATE, "looks": 2}, patience=0.0)
    assert [report["final"] for report in answer["reports"]] == undisturbed
    assert answer["reports"][0]["saves"] == {"2": False, "4": True, "6": True}
    (warning,) = answer["reports"][0]["warnings"]
    assert f"student/{LATE} is missing" in warning and "is the folder shared by all ranks?" in warning


@pytest.mark.parametrize("rank", [0, 1])
def test_a_restart_waits_for_a_late_file_too(server, undisturbed, stopped, rank):
    answer = server.play(stopped, late={"rank": rank, "name": LATE, "looks": 4})
    assert [report["resumed_from"] for report in answer["reports"]] == [4, 4]
    assert answer["reports"][0]["warnings"] == []
    assert [report["final"] for report in answer["reports"]] == undisturbed


def test_each_rank_reads_its_own_files_and_no_others(server, stopped):
    reports = server.play(stopped)["reports"]
    assert [report["opened"] for report in reports] == [[f"zero_rank_{rank}_states.pt"] * 2 for rank in (0, 1)], (
        "to compare it with its digest, and to load it"
    )
