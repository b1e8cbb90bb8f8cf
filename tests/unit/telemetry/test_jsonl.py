"""The history file is valid JSON line by line, survives kills, and can be rewound."""

import errno
import json
import math
import os
import signal
import subprocess
import sys

import pytest

from distill_engine.telemetry.jsonl import JsonlSink, read_history
from distill_engine.telemetry.sinks import Record, SinkGroup


def train(step):
    return Record("train", step, step / 2, {"train/total": 1 / (step + 1)})


def filled(path, steps):
    sink = JsonlSink(path)
    for step in steps:
        sink.write(train(step))
    return sink


def test_round_trip_is_exact(tmp_path):
    records = [
        Record("train", 1, 0.1, {"train/total": 0.1 + 0.2, "train/lr": 1e-45}),
        Record("valid", 1, 0.2, {"valid/ppl": 3.0}),
        Record("event", 2, 0.3, text="Größeres Ereignis\nin zwei Zeilen"),
        Record("samples", 2, 0.4, rows=({"reference": "Grüße", "student": ""}, {"reference": "b\n", "student": "c"})),
    ]
    sink = JsonlSink(tmp_path / "deep" / "metrics.jsonl")
    for record in records:
        sink.write(record)
    sink.close("finished")
    assert read_history(tmp_path / "deep" / "metrics.jsonl") == records


def test_numbers_that_are_not_finite_are_strings_in_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {"train/total": math.nan, "train/ppl": math.inf, "train/grad_norm": -math.inf}
    JsonlSink(path).write(Record("train", 1, 0.0, values))

    def refuse(word):
        raise AssertionError(word)

    written = json.loads(path.read_text(), parse_constant=refuse)["values"]
    assert written == {"train/total": "NaN", "train/ppl": "Infinity", "train/grad_norm": "-Infinity"}
    read = read_history(path)[0].values
    assert math.isnan(read["train/total"]) and read["train/ppl"] == math.inf and read["train/grad_norm"] == -math.inf


def test_every_line_is_in_the_file_before_write_returns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    for step in (1, 2):
        sink.write(train(step))
        assert len(path.read_text().splitlines()) == step


def test_rewind_equals_an_undisturbed_history(tmp_path):
    undisturbed = tmp_path / "a.jsonl"
    filled(undisturbed, range(10)).close("finished")
    disturbed = tmp_path / "b.jsonl"
    filled(disturbed, range(7))
    with disturbed.open("ab") as file:
        file.write(b'{"kind": "train", "step": 4, "sec')
    resumed = JsonlSink(disturbed)
    resumed.rewind(4)
    for step in range(5, 10):
        resumed.write(train(step))
    resumed.close("finished")
    assert disturbed.read_bytes() == undisturbed.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_rewind_drops_lines_that_a_crash_filled_with_garbage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    filled(path, [1]).close("failed")
    with path.open("ab") as file:
        file.write(b"\0" * 100 + b'\n{"kind": "dance", "step": 1, "seconds": 1, "values": {}}\n[1, 2]\n\xff\xfe\n{}\n')
    sink = JsonlSink(path)
    sink.rewind(5)
    sink.write(train(2))
    assert [record.step for record in read_history(path)] == [1, 2]
    assert len(path.read_bytes().splitlines()) == 2


def test_rewind_to_before_the_start_empties_a_fresh_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = filled(path, [1, 2])
    sink.rewind(0)
    assert path.read_bytes() == b""


def test_opening_cuts_a_half_line_so_that_the_next_one_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    filled(path, [1]).close("failed")
    with path.open("ab") as file:
        file.write(b'{"kind": "tr')
    JsonlSink(path).write(train(2))
    assert [record.step for record in read_history(path)] == [1, 2]


def test_rewind_that_cannot_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    sink = filled(path, [1, 2, 3])
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", _full_disk)
    warnings = []
    SinkGroup([sink], warnings.append).rewind(1)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert "No space left on device" in warnings[0]


def _full_disk(descriptor):
    raise OSError(28, "No space left on device")


_FULL = """
import json, resource, sys
from pathlib import Path
from distill_engine.telemetry.jsonl import JsonlSink
from distill_engine.telemetry.sinks import Record, SinkGroup

path, room = Path(sys.argv[1]), int(sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
sink = JsonlSink(path)
write = lambda step: sink.write(Record("train", step, step / 2, {"train/total": 1 / (step + 1)}))
seen = []
for step in range(10):
    if step == 3:  # from now on a file takes some bytes of the next line, but not all
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, hard))
    if step == 6:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        write(step)
    except OSError as error:
        seen.append([step, error.errno, path.read_bytes().endswith(b"\\n"), len(path.read_bytes().splitlines())])
        continue
print(json.dumps(seen))
"""


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_file_that_takes_only_a_part_of_a_line_is_left_with_whole_ones(tmp_path, room):
    """The kernel itself cuts the write, as it does where a disk becomes full."""
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", _FULL, str(path), str(room)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[step, errno.EFBIG, True, 3] for step in (3, 4, 5)]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 6, 7, 8, 9]


def test_a_record_that_failed_can_be_written_again_with_nothing_twice(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    sink, whole = filled(path, [1, 2]), os.write
    monkeypatch.setattr("os.write", lambda handle, content: _half(whole, handle, content))
    with pytest.raises(OSError):
        sink.write(train(3))
    monkeypatch.undo()
    sink.write(train(3))
    sink.close("finished")
    assert path.read_bytes() == _undisturbed(tmp_path, [1, 2, 3])


def _half(write, handle, content):
    if len(content) < 20:
        raise OSError(28, "No space left on device")
    return write(handle, content[: len(content) // 2])


def _undisturbed(folder, steps):
    filled(folder / "undisturbed.jsonl", steps).close("finished")
    return (folder / "undisturbed.jsonl").read_bytes()


def test_a_half_line_longer_than_a_block_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    filled(path, [1]).close("failed")
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    JsonlSink(path).write(train(2))
    assert path.read_bytes() == _undisturbed(tmp_path, [1, 2])


def test_a_file_with_nothing_but_a_half_line_is_emptied(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"y" * 70_000)
    JsonlSink(path)
    assert path.read_bytes() == b""


def test_lines_survive_sigkill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    program = (
        "import os, signal\n"
        "from distill_engine.telemetry.jsonl import JsonlSink\n"
        "from distill_engine.telemetry.sinks import Record\n"
        f"sink = JsonlSink({str(path)!r})\n"
        "for step in range(5): sink.write(Record('train', step, 0.0, {'train/total': 1.0}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [record.step for record in read_history(path)] == list(range(5))


def test_a_path_that_cannot_be_opened_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        JsonlSink(tmp_path / "file" / "metrics.jsonl")
