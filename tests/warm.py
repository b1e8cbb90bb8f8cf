"""A warm process: it has imported what the program imports, and every start is forked from it.

Starts of the program spend most of their time importing the same modules; here that happens once. What begins in a
forked process is the script itself, as `__main__`, with a command line, an environment, a folder and files of its own;
it ends as any interpreter does. What a launcher does is done as DeepSpeed's does it: its variables, and when one rank
ends badly the others are told to.

The tests hold the other end of its standard input and output. Lines of JSON:

    {"ready": true}                    once
    {"number": 3, "words": [script or "-m", ...], "ranks": 2, "env": {...}, "folder": F, "out": F, "err": F}
    {"number": 3, "pids": [11, 12]}   at once, in the order of ranks
    {"number": 3, "code": 0}          when all have ended: the first that is not 0; -9 for one killed by SIGKILL
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from distill_engine import registry

LOOK_SECONDS = 0.02  # how often children are looked after
LOAD_SECONDS = 300.0  # for the imports, on the busiest machine
PATIENCE_SECONDS = 30.0  # between SIGTERM and SIGKILL for the other ranks


class Run:
    """The test's view of one start; the ranks' process ids, and what subprocess.Popen has."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.returncode: int | None = None
        self._started, self._over = threading.Event(), threading.Event()

    @property
    def pid(self) -> int:
        return self.pids[0]

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._over.wait(timeout):
            raise subprocess.TimeoutExpired("a forked program", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To every rank, as a launcher passes it on."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                if self.returncode is None:
                    os.kill(pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def hear(self, answer: dict) -> None:
        if "pids" in answer:
            self.pids = answer["pids"]
            self._started.set()
        else:
            self.returncode = answer["code"]
            self._over.set()

    def begun(self, seconds: float) -> "Run":
        assert self._started.wait(seconds), "the warm process starts nothing"
        return self


class Warm:
    """The warm process, from outside. Started when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()
        self._runs: list[Run] = []

    def prepare(self, env: dict[str, str]) -> None:
        """Begin importing, unless that has happened; what Python and libraries read then is read from this `env`."""
        if self._process is None:
            self._process = self._begin(env)

    def await_ready(self) -> None:
        assert self._ready.wait(LOAD_SECONDS), "the warm process does not come to an end of importing"

    def start(self, words: list[str], env: dict[str, str], folder: Path, out: Path, err: Path, ranks: int = 1) -> Run:
        """One process, or several that are ranks of each other; `env` is all that they see, though what Python and
        libraries read when they are loaded is that of the first start."""
        self.prepare(env)
        self.await_ready()
        assert self._process is not None and self._process.stdin is not None
        run = Run()
        self._runs.append(run)
        order = {"number": len(self._runs) - 1, "words": words, "env": env, "ranks": ranks}
        places = {"folder": folder, "out": out, "err": err}
        self._process.stdin.write(json.dumps(order | {name: str(place) for name, place in places.items()}) + "\n")
        self._process.stdin.flush()
        return run.begun(60)

    def run(self, words: list[str], env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
        """As subprocess.run does it with captured texts."""
        out, err = (self._folder / f"{len(self._runs)}.{name}" for name in ("out", "err"))
        code = self.start(words, env, folder, out, err).wait(400)
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

    def stop(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(30)

    def _begin(self, env: dict[str, str]) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self._folder,
            env={name: value for name, value in env.items() if name != "PYTHONPATH"},
        )  # fmt: skip
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answer = json.loads(line)
            self._runs[answer["number"]].hear(answer) if "number" in answer else self._ready.set()


# ---- the process itself ------------------------------------------------------------------------------------------


class Group:
    """The ranks of one start that are left."""

    def __init__(self, number: int, pids: list[int]) -> None:
        self.number, self.left, self.code = number, set(pids), 0
        self._told = 0.0

    def look(self) -> bool:
        """Whether all have ended; if one did badly, the others are ended."""
        for pid in list(self.left):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.left.discard(pid)
                self.code = self.code or os.waitstatus_to_exitcode(status)
        if self.code and self.left and (not self._told or time.monotonic() - self._told > PATIENCE_SECONDS):
            self.end(signal.SIGKILL if self._told else signal.SIGTERM)
            self._told = time.monotonic()
        return not self.left

    def end(self, number: int) -> None:
        for pid in self.left:
            os.kill(pid, number)


def import_all() -> None:
    """What runs and commands import, sooner or later."""
    from distill_engine.telemetry.quiet import quiet_libraries

    quiet_libraries(0)
    import deepspeed  # noqa: F401
    import torch
    import torch._inductor.compile_fx
    from transformers import AutoTokenizer, BartForConditionalGeneration, BlenderbotForConditionalGeneration  # noqa: F401

    import distill_engine.assembly.launch
    import distill_engine.cli  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # a collection in a child would copy all of this


def serve() -> dict | None:
    """Fork until the end of standard input. Returns in the children, with what each is to be."""
    groups: list[Group] = []
    text = b""
    while True:
        if select.select([0], [], [], LOOK_SECONDS if groups else None)[0]:
            more = os.read(0, 1 << 16)
            if not more:
                for group in groups:
                    group.end(signal.SIGKILL)
                return None
            text += more
        while b"\n" in text:
            line, _, text = text.partition(b"\n")
            order = json.loads(line)
            pids: list[int] = []
            envs = launched(order["env"], order["ranks"])
            for rank, env in enumerate(envs):
                pid = os.fork()
                if pid == 0:
                    return order | {"env": env, "rank": rank}
                pids.append(pid)
            groups.append(Group(order["number"], pids))
            say({"number": order["number"], "pids": pids})
        for group in [one for one in groups if one.look()]:
            groups.remove(group)
            say({"number": group.number, "code": group.code})


def launched(env: dict[str, str], ranks: int) -> list[dict[str, str]]:
    """Each rank's environment, as DeepSpeed's launcher makes it; one rank has no launcher."""
    if ranks == 1:
        return [env]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    group |= {"CROSS_RANK": "0", "CROSS_SIZE": "1", "LOCAL_SIZE": str(ranks)}
    return [env | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def say(answer: dict) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def become(order: dict) -> None:
    """This forked process is the script's from here on."""
    atexit.register(gc.unfreeze)  # else libraries tell of leaks at the end
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["folder"])
    if own := order["env"].get("PYTHONPATH"):
        sys.path[1:1] = own.split(os.pathsep)
        registry._installed.cache_clear()  # there are other packages now
    script, *arguments = order["words"]
    if order["ranks"] > 1:
        arguments.insert(0, f"--local_rank={order['rank']}")
    if script == "-m":
        module, *arguments = arguments
        sys.argv, sys.path[0] = [module, *arguments], order["folder"]
        sys.modules.pop(module, None)  # runpy warns of modules that are imported already
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [script, *arguments], str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    import_all()
    say({"ready": True})
    mine = serve()
    if mine is None:
        os._exit(0)  # libraries would tell of what is frozen as of leaks
    become(mine)
