"""Starts of commands that share work and go on (`distill cache`, `distill pseudo-label`) as a launcher's ranks, forked
from one process that has imported everything.

Reads lines of JSON: {"arguments": [...], "ranks": N, "kill_at": [line or 0 of each rank], "launcher": true}. A rank
dies by SIGKILL when it has run so many lines of what makes and writes results, and its launcher then kills the others;
with "launcher": false it does not, and ranks wait only a moment for one that says nothing. Answers with the exit codes
and the lines that each rank ran (0 where it was killed).
"""

import json
import os
import signal
import sys
from types import FrameType
from typing import Any

import torch
import transformers

from distill_engine.assembly import cache_files, caching
from distill_engine.cli import app
from distill_engine.cluster import other_ranks
from distill_engine.evaluate import compare, partial_results
from distill_engine.evaluate import run as evaluation
from distill_engine.pseudo_labels import generate, write
from distill_engine.teachers import store

assert transformers.BlenderbotForConditionalGeneration and compare  # what every start would import for itself
RESULTS = (cache_files, caching, store, partial_results, evaluation, generate, write)
TRACED = {module.__file__ for module in RESULTS}
torch.set_num_threads(1)  # no pool of threads that a fork would lose


def start(rank: int, ranks: int, arguments: list[str], kill_at: int, count_to: int, launcher: bool) -> int:
    """Fork a rank; its process id."""
    if process := os.fork():
        return process
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} if ranks > 1 else {}
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks} if ranks > 1 else {}
    os.environ.update(address | {name: str(value) for name, value in own.items()})
    lines, code = 0, 1
    if not launcher:
        other_ranks.BEAT_SECONDS, other_ranks.SILENT_SECONDS, other_ranks.ABSENT_SECONDS = 0.1, 3.0, 3.0

    def line(_frame: FrameType, event: str, _value: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    sys.settrace(lambda frame, _event, _value: line if frame.f_code.co_filename in TRACED else None)
    try:
        app(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.settrace(None)
        os.write(count_to, f"{rank} {lines}\n".encode())
        os._exit(code)


def play(arguments: list[str], ranks: int, kill_at: list[int], launcher: bool) -> dict[str, list[int]]:
    """One start."""
    read, write = os.pipe()
    living = {start(rank, ranks, arguments, kill_at[rank], write, launcher): rank for rank in range(ranks)}
    codes = [0] * ranks
    while living:
        process, status = os.wait()
        codes[living.pop(process)] = os.waitstatus_to_exitcode(status)
        if status and launcher:
            for other in living:
                os.kill(other, signal.SIGKILL)
    os.close(write)
    lines = [0] * ranks
    with os.fdopen(read) as told:
        for rank, count in (one.split() for one in told):
            lines[int(rank)] = int(count)
    return {"codes": codes, "lines": lines}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for asked in sys.stdin:
        answers.write(json.dumps(play(**json.loads(asked))) + "\n")
        answers.flush()
