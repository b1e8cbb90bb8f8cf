"""A rank that only lives, for tests of launchers: watches its launcher as a real one does, and saves when told to.

idle_rank.py FOLDER    leaves FOLDER/<pid>, and FOLDER/<pid>.saved when it was asked to stop
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from distill_engine.cluster.exit_codes import STOPPED_AND_SAVED, leave_verdict
from distill_engine.cluster.facts import read_cluster
from distill_engine.cluster.lifeline import watch_launcher

folder = Path(next(word for word in sys.argv[1:] if not word.startswith("--")))
facts = read_cluster(os.environ)


def save_and_end(*_: object) -> None:
    (folder / f"{os.getpid()}.saved").touch()
    if facts.rank == 0:
        leave_verdict(STOPPED_AND_SAVED)
    os._exit(STOPPED_AND_SAVED)


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, save_and_end)
watch_launcher(facts.launcher, save_and_end)
(folder / str(os.getpid())).touch()
time.sleep(600)
