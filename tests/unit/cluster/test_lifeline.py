"""A process whose launcher dies is asked to stop, and killed when it does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill_engine.cluster.lifeline import parent_of

ROOT = Path(__file__).parents[3]
RANK = """
import sys, time, pathlib, os
from distill_engine.cluster import lifeline
lifeline.POLL_SECONDS = 0.05
def asked(*_):
    pathlib.Path(sys.argv[2]).write_text("asked")
    if sys.argv[3] == "obeys":
        os._exit(0)
lifeline.watch_launcher(sys.argv[1], asked, grace_seconds=0.3)
print(os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""
# a launcher starts the rank; the one above it waits as `deepspeed` waits for its `launch.py`
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', *sys.argv[1:]]).returncode)"


def gone(pid: int) -> bool:
    return parent_of(pid) is None


@pytest.mark.parametrize(
    ("launcher", "behaviour", "levels", "dies"),
    [
        ("torchrun", "obeys", 1, True),
        ("srun", "stubborn", 1, True),
        ("deepspeed", "obeys", 2, True),
        ("python", "obeys", 1, False),
        ("torchrun", "obeys", 2, False),
    ],
)
def test_when_the_outermost_launcher_is_killed(tmp_path, launcher, behaviour, levels, dies):
    told = tmp_path / "told"
    code = [LAUNCHER] * levels + [RANK, launcher, str(told), behaviour]
    started = subprocess.Popen([sys.executable, "-c", *code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    started.send_signal(signal.SIGKILL)
    started.wait()
    deadline = time.monotonic() + (60 if dies else 0.6)
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gone(pid) is dies
    assert told.exists() is dies
    if not dies:
        os.kill(pid, signal.SIGKILL)
