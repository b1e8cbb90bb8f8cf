"""A signal that announces the time limit before training has begun is no crash."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from distill_engine.cluster.exit_codes import STOPPED_AND_SAVED, read_verdict

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


def test_an_early_signal_ends_with_the_code_that_asks_for_another_start(tmp_path):
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    started = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=ROOT,
        env=env | {"DISTILL_VERDICT": str(tmp_path / "verdict")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None and started.stdout.readline() == "started\n"
    started.send_signal(signal.SIGUSR1)
    assert started.wait(timeout=30) == STOPPED_AND_SAVED
    assert read_verdict(tmp_path / "verdict")[0] == STOPPED_AND_SAVED
