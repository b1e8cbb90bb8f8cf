"""The history file is valid JSON line by line, survives kills, and can be rewound."""

import json
import math
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
        Record("samples", 2, 0.4, rows=({"gold": "Grüße", "student": ""}, {"gold": "b\n", "student": "c"})),
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
