"""Stands for the ranks where a test is about the job script, Slurm and the requeue; without torch a start is quick.

The job script starts it instead of run.py (`stand_in` in conftest.py). It writes down what it was given, then does what
STAND_IN says, or saves when SIGUSR1 tells it to stop: {"codes": [code of each start in turn, the last one repeats],
"rank": which rank ends with it, or "all", "wait": not before the file `go` is there, "verdict": leave one}.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def save_and_end(*_: object) -> None:
    (folder / f"saved-{start}-rank-{rank}").touch()
    if rank == 0:
        Path(os.environ["DISTILL_VERDICT"]).write_text("75\n")
    sys.exit(75)


asked = json.loads(os.environ["STAND_IN"])
folder, rank = Path(asked["folder"]), int(os.environ["SLURM_PROCID"])
start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
signal.signal(signal.SIGUSR1, save_and_end)
(folder / f"start-{start}-rank-{rank}.json").write_text(
    json.dumps({"argv": sys.argv, "pid": os.getpid(), "environ": dict(os.environ)})
)
code = asked["codes"][min(start, len(asked["codes"]) - 1)]
if asked["rank"] not in (rank, "all"):
    time.sleep(600)  # until the step is ended
while len(list(folder.glob(f"start-{start}-rank-*.json"))) < int(os.environ["SLURM_STEP_NUM_TASKS"]):
    time.sleep(0.05)  # nobody is ended before it has begun
while asked.get("wait") and not (folder / "go").exists():
    time.sleep(0.05)
if asked.get("verdict", True):
    Path(os.environ["DISTILL_VERDICT"]).write_text(f"{code}\n")
sys.exit(code)
