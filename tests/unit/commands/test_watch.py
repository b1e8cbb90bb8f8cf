"""`distill watch` in a real terminal, while another process trains (holds the run's lock and writes records)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.spinner import Spinner

from distill_engine.reports.history import is_running, read_run
from distill_engine.reports.watch_view import sparkline, watch_view
from distill_engine.telemetry.jsonl import JsonlSink
from distill_engine.telemetry.sinks import GAP, Record

ROOT = Path(__file__).parents[3]
LIMIT_SECONDS = 60

# Trains one step for each line on its standard input and ends with it, as a run does: first the record, then the lock.
TRAINER = """
import sys
from pathlib import Path
from distill_engine.telemetry.jsonl import JsonlSink
from distill_engine.telemetry.sinks import Record
from distill_engine.setup.run_folder import RunLock

class Alone:
    rank, world_size = 0, 1
    def gather(self, value):
        return [value]

folder = Path(sys.argv[1])
with RunLock(folder, Alone()):
    sink, step = JsonlSink(folder / "metrics.jsonl"), 0
    for line in sys.stdin:
        step += 10
        sink.write(Record("train", step, float(step), {"train/total": 1000.0 / step, "train/ppl": 2.5}))
        print("wrote", flush=True)
    sink.close("finished")
"""
WATCHER = """
import sys, typer
from distill_engine.commands.watch import watch
app = typer.Typer(pretty_exceptions_enable=False)
app.callback()(lambda: None)
app.command()(watch)
app(sys.argv[1:])
"""


def write(folder: Path, steps: int) -> None:
    sink = JsonlSink(folder / "metrics.jsonl")
    sink.write(Record("event", 0, 0.0, {}, "hello there"))
    for step in range(1, steps + 1):
        values = {"train/total": 100.0 / step, "train/ppl": 3.0, "train/term/task/raw": 1.0}
        sink.write(Record("train", step, float(step), values | {"train/term/task/weighted": 1.0}))
    said = [(f"long ago\n{n} cats?", f"teacher {n}", f"[b]s{n}") for n in range(6)]
    rows = [{"context": asked, "reference": "g", "teacher": right, "student": own} for asked, right, own in said]
    sink.write(Record("samples", steps, float(steps), rows=tuple(rows)))
    sink.close("finished")


def shown(folder: Path, height: int) -> str:
    console = Console(width=100, record=True, file=open(os.devnull, "w"), color_system=None)  # noqa: SIM115, PTH123
    console.print(watch_view(read_run(folder), Spinner("dots"), height))
    return console.export_text()


def test_the_picture_of_a_run(tmp_path):
    write(tmp_path, 40)
    text = shown(tmp_path, 60)
    assert "stopped · step 40" in text and "step 0: hello there" in text
    assert re.search(r"train/total +100 +█[▁▂▃▄▅▆▇█]+▁ +2\.5 +2\.5", text)
    assert re.search(r"task +1 +1 +━* +100 %", text)


def test_records_that_are_missing_are_told(tmp_path):
    write(tmp_path, 40)
    (tmp_path / "checkpoints" / "step-00000040").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000050.tmp").mkdir()  # half-written: no checkpoint yet
    assert "records missing" not in shown(tmp_path, 60)
    (tmp_path / "checkpoints" / "step-00000050").mkdir()
    assert "records missing in metrics.jsonl: those of steps 41 to 50" in shown(tmp_path, 60)
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(Record("event", 41, 41.0, {GAP: 9.0}, "9 records (steps 41 to 49) missing here"))
    sink.write(Record("train", 50, 50.0, {"train/total": 1.0}))
    text = shown(tmp_path, 60)
    assert "records missing in metrics.jsonl: 9 in between" in text and "step 41: 9 records" in text


def test_sample_replies_of_teacher_and_student_side_by_side(tmp_path):
    write(tmp_path, 40)
    text = shown(tmp_path, 60)
    assert re.search(r"sample replies, step 40 +teacher +student", text)
    for n in range(4):
        assert re.search(rf"{n} cats\? +teacher {n} +\[b\]s{n}", text), "what a model says is no markup"
    assert "4 cats?" not in text and "long ago" not in text
    assert "sample replies" not in shown(tmp_path, 22)


def test_a_small_terminal_gets_less(tmp_path):
    write(tmp_path, 40)
    lines = [len(shown(tmp_path, height).splitlines()) for height in (12, 20, 60)]
    assert lines == sorted(lines) and lines[0] <= 12 and lines[1] <= 20 < 60


@pytest.mark.parametrize(
    "values, log, bars",
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], False, "▁▂▃▄▅▆▇█"),
        ([1, 10, 100], True, "▁▅█"),
        ([1, 10, 100], False, "▁▁█"),
        ([-1.0, 0.0, 1.0], True, "▁▅█"),  # no logarithm of these
        ([5.0, 5.0], False, "▁▁"),
        ([1.0, float("nan"), float("inf"), 2.0], False, "▁!!█"),
        ([float("nan")], True, "!"),
        ([], False, ""),
    ],
)
def test_sparklines(values, log, bars):
    assert sparkline(values, 8, log) == bars


def test_long_histories_are_averaged_into_the_width():
    assert sparkline([1.0] * 500 + [3.0] * 500, 4, log=False) == "▁▁██"


def test_a_folder_without_a_lock_is_not_running(tmp_path):
    assert not is_running(tmp_path)
    (tmp_path / ".lock").touch()
    assert not is_running(tmp_path)


def test_it_follows_a_run_to_its_end(tmp_path, terminal):
    own = {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    env = {**os.environ, **own}
    command = [sys.executable, "-c", TRAINER, str(tmp_path)]
    trainer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        trainer.stdin.write("step\n")
        trainer.stdin.flush()
        assert trainer.stdout.readline() == "wrote\n"
        assert is_running(tmp_path)
        watch = [sys.executable, "-c", WATCHER, "watch", str(tmp_path), "--every", "0.1"]
        screen = terminal(watch, env)
        screen.until(r"training · step 10")
        trainer.stdin.write("step\n")
        trainer.stdin.flush()
        screen.until(r"training · step 20")
        trainer.stdin.close()
        assert trainer.wait(LIMIT_SECONDS) == 0
        screen.until(r"stopped · step 20")
        assert screen.process.wait(LIMIT_SECONDS) == 0
    finally:
        trainer.kill()
        trainer.wait()
    assert not is_running(tmp_path)
