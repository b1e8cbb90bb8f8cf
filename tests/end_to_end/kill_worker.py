"""Starts training runs that die: a warm process that has imported everything and forks the ranks of each attempt.

Started once by the tests. Every line on standard input is one attempt (JSON): arguments of the program, number of
ranks, and the plan of a kill; the answer is one line: exit code, phase and optimizer steps of every rank. A plan is

    {"rank": 0, "phase": "saving", "event": "byte", "count": 4711, "steps": 3}
    {"rank": 0, "event": "second", "count": 0.8, "steps": 3}

SIGKILL at the 4711th byte that rank 0 writes while it saves, or after 0.8 seconds; before step 4 at the latest.
`"signals": ["SIGTERM", "SIGUSR1"]` sends these instead, once. Without a plan the attempt runs to its end. The ranks run
`distill_engine.run.main`, in processes of their own.
"""

import contextlib
import gc
import importlib
import io
import json
import mmap
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import torch
from tqdm import tqdm

from distill_engine import run
from distill_engine.assembly import launch as assemble
from distill_engine.assembly.publishing import THREAD_NAME as EXPORT_THREAD_NAME
from distill_engine.checkpoint.background import THREAD_NAME
from distill_engine.checkpoint.checkpoints import TIDY_THREAD_NAME
from distill_engine.checkpoint.folder import CheckpointFolder
from distill_engine.train.watchdog import Watchdog

# What the program says when something begins -> the phase it is in then.
PHASES = {
    "building": "starting",
    "sharding": "starting",
    "loading": "starting",
    "trying": "starting",
    "asking": "starting",
    "reading part": "resuming",
    "in phase": "training",
    "agreeing": "training",
    "going on after": "training",
    "validating": "validating",
    "exporting": "exporting",
    "saving": "saving",
    "waiting": "saving",
    "writing part": "saving",
}
THREADS = {THREAD_NAME: "writing", EXPORT_THREAD_NAME: "exporting"}
BESIDE = {EXPORT_THREAD_NAME: "exporting", TIDY_THREAD_NAME: "tidying"}
FILE_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.listdir", "shutil.rmtree"}
NOTE_BYTES = 64
plain_open, plain_save, plain_beat = io.open, torch.save, Watchdog.beat


class Diary:
    """Memory that outlives the process which writes it: its phase, and how many optimizer steps it has begun."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, NOTE_BYTES)
        self.write("starting", 0)

    def write(self, phase: str, steps: int) -> None:
        self._memory[:] = f"{phase} {steps}".encode().ljust(NOTE_BYTES, b"\0")

    def read(self) -> tuple[str, int]:
        phase, _, steps = self._memory[:].rstrip(b"\0").decode().partition(" ")
        return phase, int(steps or 0)


class Victim:
    """Watches the process that it lives in, and kills it where the plan says."""

    def __init__(self, plan: dict, folder: Path, diary: Diary) -> None:
        self._plan, self._folder, self._diary = plan, str(folder), diary
        self._left = plan.get("count", 0)
        self._phases: dict[int, str] = {}  # of each thread
        self._steps = 0
        self.enter("starting")

    def enter(self, phase: str) -> str:
        """This thread is in another phase now; returns the one it was in."""
        thread = threading.get_ident()
        before = self._phases.get(thread, phase)
        self._phases[thread] = phase
        self._note(phase)
        return before

    def beat(self, doing: str) -> None:
        self.enter(next(phase for text, phase in PHASES.items() if doing.startswith(text)))
        if doing.startswith("in phase 'data'"):
            self._steps += 1
            if self._steps > self._plan.get("steps", sys.maxsize):
                for thread in threading.enumerate():  # what goes on beside training may still come to its own danger
                    if thread.name in BESIDE and BESIDE[thread.name] == self._plan.get("phase"):
                        thread.join()
                self._die()
        self.happened("beat")

    def happened(self, event: str, times: int = 1) -> bool:
        """Count; whether this was the one to die at."""
        phase = self._phase()
        if event != self._plan.get("event") or phase != self._plan.get("phase") or self._left <= 0:
            return False
        self._left -= times
        if self._left <= 0 and event != "byte":
            self._die()
        return self._left <= 0

    def owns(self, path: object) -> bool:
        """Whether a path is the run's: below its folder, or told by a folder's handle as rmtree does."""
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        return text.startswith(self._folder) or not text.startswith("/")

    def _phase(self) -> str:
        """What this thread is doing; those that write in the background say nothing themselves."""
        unsaid = THREADS.get(threading.current_thread().name, "starting")
        return self._phases.get(threading.get_ident(), unsaid)

    def _note(self, phase: str) -> None:
        self._diary.write(phase, self._steps)

    def _die(self) -> None:
        self._note(self._phase())
        signals, self._plan = self._plan.get("signals", ["SIGKILL"]), {}
        for name in signals:
            os.kill(os.getpid(), signal.Signals[name])

    # ---- where events come from ----------------------------------------------------------------------------------

    def watch(self) -> None:
        """From now on: beats, file operations and written bytes of this process are counted."""
        Watchdog.beat = lambda dog, doing: (plain_beat(dog, doing), self.beat(doing))[0]
        CheckpointFolder.commit = self._during("committing", CheckpointFolder.commit)
        CheckpointFolder.tidy = self._during("tidying", CheckpointFolder.tidy)
        io.open, torch.save = self._open, self._save
        sys.addaudithook(self._audit)

    def _during(self, phase: str, method):
        def inside(*arguments):
            before = self.enter(phase)
            try:
                return method(*arguments)
            finally:
                self.enter(before)

        return inside

    def _audit(self, event: str, arguments: tuple) -> None:
        if event in FILE_OPERATIONS and self.owns(arguments[0]):
            self.happened("file")

    def _open(self, file, mode="r", *rest, **options):
        if mode != "wb" or not self.owns(file):
            return plain_open(file, mode, *rest, **options)
        return io.BufferedWriter(_CountedFile(file, self))

    def _save(self, content, file, *rest, **options) -> None:
        with contextlib.ExitStack() as stack:
            if isinstance(file, (str, os.PathLike)):
                file = stack.enter_context(self._open(file, "wb"))
            plain_save(content, file, *rest, **options)


class _CountedFile(io.FileIO):
    """A file whose writing ends in the middle, at the byte that the plan names."""

    def __init__(self, path, victim: Victim) -> None:
        super().__init__(path, "w")
        self._victim = victim

    def write(self, content) -> int:
        content = memoryview(content).cast("B")
        left = self._victim._left
        if self._victim.happened("byte", len(content)):
            super().write(content[:left])
            self._victim._die()
        return super().write(content)


# ---- the attempts ------------------------------------------------------------------------------------------------


def rank_main(attempt: dict, rank: int, port: int, diary: Diary) -> None:
    """One rank, in its own process."""
    log = os.open(attempt["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if attempt["ranks"] > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(attempt["ranks"]))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    plan = attempt.get("plan") or {}
    if plan.get("rank", rank) != rank:
        plan = {}
    code = 1
    before = set(sys.modules)
    try:
        Victim(plan, Path(attempt["run_dir"]), diary).watch()
        code = run.main(attempt["arguments"])
        if attempt.get("modules"):
            Path(attempt["modules"]).write_text(json.dumps([name for name in sys.modules if name not in before]))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def play(attempt: dict) -> dict:
    """Fork the ranks, kill where the plan is a time, and wait for all. As launchers do, end all when one has died."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    diaries = [Diary() for _ in range(attempt["ranks"])]
    children: dict[int, int] = {}
    for rank, diary in enumerate(diaries):
        child = os.fork()
        if child == 0:
            rank_main(attempt, rank, port, diary)
        children[child] = rank
    plan = attempt.get("plan") or {}
    if plan.get("event") == "second":
        time.sleep(plan["count"])
        os.kill(list(children)[plan["rank"]], signal.SIGKILL)
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[children[child]] = os.waitstatus_to_exitcode(status)
        if codes[children[child]] != 0:
            for other, rank in children.items():
                if rank not in codes:
                    os.kill(other, signal.SIGKILL)
    phases, steps = zip(*(diary.read() for diary in diaries), strict=True)
    return {"codes": [codes[rank] for rank in sorted(codes)], "phases": phases, "steps": steps}


def warm_up(modules: Path, teacher: str) -> None:
    """Import what a run imported, load what it loaded once: every later attempt finds that in memory."""
    from transformers import AutoModelForSeq2SeqLM

    for name in json.loads(modules.read_text()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    AutoModelForSeq2SeqLM.from_pretrained(teacher)
    gc.freeze()  # a collection in an attempt would copy all of this


def main() -> None:
    assert assemble  # imported to be warm
    torch.set_num_threads(1)
    # tqdm's own lock is a semaphore that forked processes share: one killed while it holds it would stop all others.
    # Its thread may hold the lock while this process forks.
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
    for line in sys.stdin:
        order = json.loads(line)
        if "warm_up" in order:
            warm_up(Path(order["warm_up"]), order["teacher"])
            answer: dict = {}
        else:
            answer = play(order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
