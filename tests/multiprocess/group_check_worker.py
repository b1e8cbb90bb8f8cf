"""Ranks as srun starts them, three for each fault on the command line, forked so that libraries are imported once.

    group_check_worker.py FOLDER CHECK_SECONDS JOIN_SECONDS FAULT ...

All groups run at the same time. What a rank says goes to FOLDER/<fault>-<rank>; exit codes, and the seconds until the
last rank that can end had ended, are printed as JSON. Ranks that stand still are killed in the end.
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
import torch

from distill_engine.engine import distributed, group_check, roll_call

SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_NODELIST": "gpu[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "1,2",
    "MASTER_ADDR": "127.0.0.1",
    "SLURM_DISTRIBUTION": "cyclic",  # one by one, which for these nodes is the order of PLACES
}
roll_call.SAID_AFTER_SECONDS = 3.0
PLACES = (("gpu01", 0, 0), ("gpu02", 1, 0), ("gpu02", 1, 1))
STANDS_STILL = {"never comes": 1, "stands still": 1, "rank 0 stands still": 0}


def stop_here(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def inject(fault: str, rank: int) -> None:
    work, own = group_check.own_work, group_check.contribution
    if fault == "rank 0 stands still" and rank == 0:
        group_check.own_work = stop_here
    if rank != 1:
        return
    if fault == "never comes":
        stop_here()
    elif fault == "stands still":
        group_check.own_work = stop_here
    elif fault == "dies":
        group_check.own_work = lambda _device: os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "slow":
        group_check.own_work = lambda device: (work(device), time.sleep(0.6))
    elif fault == "wrong":
        group_check.contribution = lambda rank, device: own(rank, device) + torch.eye(256)[7]


def be_rank(rank: int, fault: str, check_seconds: float) -> int:
    inject(fault, rank)
    try:
        ranks = distributed.start(timedelta(minutes=5), check_seconds)
    except distributed.BadRanksError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(3)  # as the program does: leaving the process group would wait for the silent rank
    print(f"together {ranks.sum(torch.ones(1)).tolist()}", flush=True)
    distributed.stop()
    return 0


def main() -> int:
    folder, check_seconds, join_seconds, *faults = sys.argv[1:]
    children = {}
    for number, fault in enumerate(faults):
        for rank, (node, node_id, local) in enumerate(PLACES):
            pid = os.fork()
            if pid == 0:
                said = os.open(Path(folder) / f"{fault}-{rank}", os.O_WRONLY | os.O_CREAT)
                os.dup2(said, 1), os.dup2(said, 2)
                os.environ |= SRUN | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURMD_NODENAME": node}
                os.environ |= {"SLURM_NODEID": str(node_id), "SLURM_JOB_ID": f"{os.getppid()}{number}"}
                os.environ |= {"DISTILL_JOIN_SECONDS": join_seconds}
                return be_rank(rank, fault, float(check_seconds))
            children[fault, rank] = pid
    started, codes = time.monotonic(), {}
    waiting = {key: pid for key, pid in children.items() if STANDS_STILL.get(key[0]) != key[1]}
    while waiting and time.monotonic() < started + 100:
        for key, pid in list(waiting.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del waiting[key]
                codes["-".join(map(str, key))] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for key, pid in children.items():
        if key in waiting or STANDS_STILL.get(key[0]) == key[1]:
            os.kill(pid, signal.SIGKILL)
    print(json.dumps({"codes": codes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
