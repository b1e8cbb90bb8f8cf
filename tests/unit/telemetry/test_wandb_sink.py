"""W&B runs are really written, continue under one id, and never stop or delay training without a bound."""

import json
import os
import socket
import struct
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from distill_engine.telemetry.wandb_log import await_own_folder, read_rows

ROOT = Path(__file__).parents[3]
KEY = "canary0" + "b3fdc1a95e72" * 4

_PROGRAM = """
import json, pathlib, sys
from distill_engine.telemetry.sinks import Record
from distill_engine.telemetry.config import WandbSection
from distill_engine.telemetry.wandb_sink import WandbSink

folder, mode, steps, run_id = json.loads(sys.argv[1])
said = []
options = WandbSection(project="project", group="group", tags=("a", "b"), mode=mode)
sink = WandbSink(folder, "name", options, {"recipe": {"seed": 3}}, said.append, run_id=run_id, init_timeout_seconds=3)
for step in steps:
    sink.write(Record("train", step, 0.5 * step, {"train/total": 1.0 / step, "train/lr": float("nan")}))
    sink.write(Record("event", step, 0.5 * step, text="no values"))
lines = [file.read_bytes() for file in pathlib.Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
leaked = any(b"canary0" in line for line in lines)
sink.close("finished")
print(json.dumps([said, sink.run_id, "wandb" in sys.modules, leaked]))
"""


class Outcome:
    def __init__(self, done):
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        assert len(lines) == 1, lines  # nothing but the program itself spoke
        self.said, self.run_id, self.imported, self.key_in_command_lines = json.loads(lines[0])


def run(folder, mode="offline", steps=(1, 2, 3), run_id=None, **environment):
    base = next(parent for parent in folder.parents if parent.is_dir())
    home, program = base / "home", base / "program.py"
    home.mkdir(exist_ok=True)
    program.write_text(_PROGRAM)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name != "NETRC"}
    arguments = json.dumps([str(folder), mode, list(steps), run_id])
    done = subprocess.run(
        [sys.executable, str(program), arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**clean, "PYTHONPATH": str(ROOT), "HOME": str(home), **environment},
    )
    return Outcome(done)


def transaction_log(path):
    """The records of a .wandb file: LevelDB's log format after a 7-byte header, protobuf inside."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    position, block, parts, records = 7, 32768, [], []
    while position + 7 <= len(content):
        if block - position % block < 7:
            position += block - position % block
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        if kind == 0:
            break
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole record, last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            records.append(record)
            parts = []
    return records


def history(folder):
    rows = []
    for log in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in transaction_log(log):
            if record.WhichOneof("record_type") == "history":
                rows.append({item.key or item.nested_key[0]: item.value_json for item in record.history.item})
    return rows


def test_offline_run_holds_values_over_steps_and_the_config(tmp_path):
    outcome = run(tmp_path / "run", steps=(10, 20))
    assert outcome.said == []
    rows = history(tmp_path / "run")
    assert [(json.loads(row["step"]), json.loads(row["train/total"])) for row in rows] == [(10, 0.1), (20, 0.05)]
    assert rows[0]["train/lr"] in ("NaN", '"NaN"')
    (log,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    records = transaction_log(log)
    begun = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (begun.project, begun.run_group, begun.display_name) == ("project", "group", "name")
    assert sorted(begun.tags) == ["a", "b"]
    assert {item.key or item.nested_key[0]: item.value_json for item in begun.config.update}["recipe"] == '{"seed":3}'
    axes = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    assert any(axis.glob_name == "*" and axis.step_metric == "step" for axis in axes)
    assert list((tmp_path / "home").rglob(".netrc")) == []


def test_a_restart_continues_the_same_run(tmp_path):
    first = run(tmp_path / "run", steps=(1, 2))
    second = run(tmp_path / "run", steps=(2, 3))
    assert first.run_id == second.run_id == (tmp_path / "run" / "wandb_run_id").read_text().strip()
    folders = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{first.run_id}"))
    assert len(folders) == 2
    assert [int(row["step"]) for row in history(tmp_path / "run")] == [1, 2, 2, 3]


def test_an_id_from_the_checkpoint_wins_over_the_file(tmp_path):
    run(tmp_path / "run")
    assert run(tmp_path / "run", run_id="fromckpt").run_id == "fromckpt"
    assert (tmp_path / "run" / "wandb_run_id").read_text().strip() == "fromckpt"


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_key_one_line_says_offline_and_how_to_sync(tmp_path, mode):
    outcome = run(tmp_path / "run", mode=mode)
    where = tmp_path / "run" / "wandb" / f"offline-run-*-{outcome.run_id}"
    assert outcome.said == [
        f"W&B: no API key found; this run is logged offline. To upload it later: wandb sync {where}"
    ]
    assert len(history(tmp_path / "run")) == 3


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("source", ["environment", "netrc"])
def test_unreachable_server_falls_back_and_the_key_is_nowhere(tmp_path, source):
    port = closed_port()
    environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
    if source == "environment":
        environment["WANDB_API_KEY"] = KEY
    else:
        environment["NETRC"] = str(tmp_path / "netrc")
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1:{port}\n  login user\n  password {KEY}\n")
    outcome = run(tmp_path / "run", mode="auto", **environment)
    assert len(outcome.said) == 1
    assert "connection refused; this run is logged offline. To upload it later: wandb sync" in outcome.said[0]
    assert len(history(tmp_path / "run")) == 3
    assert not outcome.key_in_command_lines
    written = [path for folder in ("run", "home") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert len(written) > 3
    assert [path for path in written if b"canary0" in path.read_bytes()] == []


def test_a_malformed_key_falls_back_without_showing_it(tmp_path):
    outcome = run(tmp_path / "run", mode="auto", WANDB_API_KEY="canary0")
    assert len(outcome.said) == 1 and "API key must have 40+ characters" in outcome.said[0]
    assert "canary0" not in outcome.said[0]
    assert len(history(tmp_path / "run")) == 3


def test_disabled_does_not_even_import_wandb(tmp_path):
    outcome = run(tmp_path / "run", mode="disabled")
    assert (outcome.said, outcome.run_id, outcome.imported) == ([], None, False)
    assert not (tmp_path / "run").exists()


_TABLE_PROGRAM = """
import json, random, sys
from distill_engine.telemetry.sinks import Record
from distill_engine.telemetry.config import WandbSection
from distill_engine.telemetry.wandb_sink import WandbSink

said = []
sink = WandbSink(sys.argv[1], "name", WandbSection(project="project", mode="offline"), {}, said.append)
random.seed(3)
before = random.getstate()
rows = ({"dataset": "chat", "reference": "yes", "student": "no"}, {"dataset": "chat", "reference": "a", "student": "b"})
for step in (5, 10):
    sink.write(Record("samples", step, 1.0, rows=rows))
same = random.getstate() == before
sink.close("finished")
print(json.dumps([said, same]))
"""


def test_rows_are_a_table_at_their_step_and_draw_no_random_numbers(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name != "NETRC"}
    done = subprocess.run(
        [sys.executable, "-c", _TABLE_PROGRAM, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**clean, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], True]
    tables = sorted((tmp_path / "run").glob("wandb/offline-run-*/files/media/table/valid/*.table.json"))
    assert len(tables) == 2
    content = json.loads(tables[0].read_text())
    assert content["columns"] == ["dataset", "reference", "student"]
    assert content["data"] == [["chat", "yes", "no"], ["chat", "a", "b"]]
    assert [json.loads(row["step"]) for row in history(tmp_path / "run")] == [5, 10]


# Reads what to do from stdin, a line at a time: log a step (as training does: first the file), end wandb's service as
# a SIGTERM to the process tree does, end the run.
_RUN_PROGRAM = """
import os, pathlib, random, signal, sys, time
from distill_engine.telemetry.jsonl import JsonlSink, read_history
from distill_engine.telemetry.sinks import Persistent, Record
from distill_engine.telemetry.config import WandbSection
from distill_engine.telemetry.wandb_sink import WandbSink

folder, file = sys.argv[1], pathlib.Path(sys.argv[1]) / "metrics.jsonl"
say = lambda text: print(text, flush=True)
random.seed(3)
before = random.getstate()
jsonl = JsonlSink(file)
kept = Persistent(
    WandbSink(folder, "name", WandbSection(mode="offline"), {}, say, history=lambda: read_history(file)),
    say, heals=True, sleep=lambda seconds: None,
)

def services():
    stats = {f.parent: f.read_text().rsplit(")", 1)[1].split() for f in pathlib.Path("/proc").glob("[0-9]*/stat")}
    mine = [folder for folder, stat in stats.items() if stat[1] == str(os.getpid())]
    return [int(folder.name) for folder in mine if b"wandb" in (folder / "cmdline").read_bytes()]

for line in sys.stdin:
    word, _, step = line.strip().partition(" ")
    if word == "log":
        record = Record("train", int(step), int(step) / 2, {"train/total": 1.0 / int(step)})
        jsonl.write(record)
        kept.write(record)
    if word == "kill":
        (service,) = services()
        os.kill(service, signal.SIGTERM)
        while os.waitid(os.P_PID, service, os.WEXITED | os.WNOWAIT) is None:
            pass
    if word == "wait":  # until the pause is over: W&B names a start by its second
        kept._next_try, now = 0.0, int(time.time())
        while int(time.time()) == now:
            time.sleep(0.01)
    if word == "end":
        kept.close(step)
        break
    if word == "die":
        os.kill(services()[0], signal.SIGKILL)
        os._exit(0)
print(random.getstate() == before)
"""


@pytest.fixture
def play(tmp_path):
    (tmp_path / "run").mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name != "NETRC"}

    def run_words(*words):
        done = subprocess.run(
            [sys.executable, "-c", _RUN_PROGRAM, str(tmp_path / "run")],
            input="".join(f"{word}\n" for word in words),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**clean, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run_words


def steps_of(folder):
    return sorted(int(row["step"]) for row in history(folder))


def test_a_service_that_dies_is_started_again_and_nothing_is_missing_or_twice(tmp_path, play):
    said = play("log 1", "log 2", "kill", "log 3", "log 4", "wait", "log 5", "log 6", "end finished")
    assert steps_of(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert said[0].startswith("WandbSink failed: ") and said[-1] == "True", said


def test_a_service_that_dies_at_the_very_end_is_noticed_and_the_run_completed(tmp_path, play):
    said = play("log 1", "log 2", "kill", "end finished")
    assert steps_of(tmp_path / "run") == [1, 2]
    assert said[-1] == "True", said


def test_a_job_that_is_being_ended_does_not_begin_anew_and_the_next_start_gives_what_is_lacking(tmp_path, play):
    said = play("log 1", "log 2", "kill", "log 3", "end stopped")
    there = steps_of(tmp_path / "run")
    lost = [step for step in (1, 2, 3) if step not in there]
    assert 3 in lost
    assert f"distill wandb-sync {tmp_path / 'run'}" in said[-2] and f"W&B lacks {len(lost)} records" in said[-2], said
    said = play("log 4", "end finished")
    assert said[0] == f"W&B lacked {len(lost)} records of steps {lost[0]} to 3: given from metrics.jsonl"
    assert steps_of(tmp_path / "run") == [1, 2, 3, 4]


def test_a_start_that_records_nothing_still_gives_what_a_kill_has_lost(tmp_path, play):
    play("log 1", "die")
    play("end finished")
    assert steps_of(tmp_path / "run") == [1]


def test_a_log_on_disk_that_lost_its_end_is_completed_when_the_run_ends(tmp_path, play):
    """As a disk does that was full for a moment."""
    play("log 1", "log 2", "log 3", "end finished")
    (log,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    whole = log.read_bytes()
    log.write_bytes(whole[: whole.rindex(b"train/total") - 5])
    assert [row.identity[0] for row in read_rows(log)] == [1, 2]
    assert play("end finished")[0] == "W&B lacked 1 records of steps 3 to 3: given from metrics.jsonl"
    logs = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    assert sorted(row.identity[0] for log in logs for row in read_rows(log)) == [1, 2, 3]


def test_auto_obeys_wandb_mode(tmp_path):
    assert run(tmp_path / "run", mode="auto", WANDB_MODE="disabled").imported is False
    assert run(tmp_path / "run", mode="auto", WANDB_MODE="offline").said == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    Path(tmp_path / "file").touch()
    outcome = run(tmp_path / "file" / "run")
    assert len(outcome.said) == 1 and outcome.said[0].startswith("W&B: not available, this run is not logged there")


def test_two_starts_of_one_second_have_folders_of_their_own(tmp_path):
    """W&B would name both alike, and the second one would empty the log of the first."""
    now = datetime.now()
    taken = [f"{now + timedelta(seconds=more):%Y%m%d_%H%M%S}" for more in range(2)]
    for second in taken:
        (tmp_path / "wandb" / f"offline-run-{second}-cafe").mkdir(parents=True)
        (tmp_path / "wandb" / f"run-{second}-beef").mkdir()
    await_own_folder(tmp_path, "cafe")
    assert f"{datetime.now():%Y%m%d_%H%M%S}" > taken[-1]
    await_own_folder(tmp_path, "none")
