"""A signal before training has begun is no crash, and a launcher that dies then is a stop as well."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distill_engine.cluster.exit_codes import BAD_INPUT, NOT_BEGUN, STOPPED_AND_SAVED, leave_verdict, read_verdict
from distill_engine.train.stop_request import STOP_SIGNALS

ROOT = Path(__file__).parents[2]
WAITING = """
import sys, time
from distill_engine import run
def wait(*_):
    print("started", flush=True)
    time.sleep(60)
run._run = wait
sys.exit(run.main([]))
"""


@pytest.fixture
def started(tmp_path):
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=ROOT,
        env=env | {"DISTILL_VERDICT": str(tmp_path / "verdict")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda n: n.name)
def test_an_early_signal_ends_with_the_code_that_asks_for_another_start(tmp_path, started, number):
    started.send_signal(number)
    assert started.wait(timeout=30) == STOPPED_AND_SAVED
    assert read_verdict(tmp_path / "verdict") == (STOPPED_AND_SAVED, NOT_BEGUN)


def test_a_launcher_that_ends_the_others_after_an_error_makes_no_stop_of_it(tmp_path, started, monkeypatch):
    monkeypatch.setenv("DISTILL_VERDICT", str(tmp_path / "verdict"))
    leave_verdict(1, "rank 1 failed", unless_there=True)
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=30) == STOPPED_AND_SAVED
    assert read_verdict(tmp_path / "verdict") == (1, "rank 1 failed")


ENDING = """
import sys
from distill_engine import run
run.HEAD_START_SECONDS = 600
def ended(*_):
    print("ended", flush=True)
    return int(sys.argv[1])
run._run = ended
sys.exit(run.main([]))
"""


@pytest.mark.parametrize("code", [STOPPED_AND_SAVED, BAD_INPUT])
def test_a_rank_that_fails_waits_for_the_first_ones_word_and_one_that_stops_for_nothing(tmp_path, code):
    verdict = tmp_path / "verdict"
    own = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING, str(code)],
        cwd=ROOT,
        env=os.environ | own | {"DISTILL_VERDICT": str(verdict)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ended\n"
        if code == BAD_INPUT:
            verdict.write_text(f"{code}\n")
        assert process.wait(timeout=60) == code
    finally:
        process.kill()
        process.communicate()
