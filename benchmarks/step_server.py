"""Training steps on demand, in a process that others talk to: the two ends of it, and a count of matrix products.

A server writes one line of JSON when it is ready, then reads a number of steps per line and answers each by a line of
JSON with what every step took. It imports nothing of this project, so that any Python with PyTorch can be one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}


class Products(TorchDispatchMode):
    """While active: `gflop` counts matrix products in units of 10^9 multiplications or additions, by kind of operation.

    Of attention that is one operation the two products forward and the five backward (scores are made again there).
    """

    def __init__(self) -> None:
        super().__init__()
        self.gflop: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if (count := _COUNTS.get(name.strip("_"))) is not None:
            self.gflop[name] = self.gflop.get(name, 0.0) + count(*args) / 1e9
        return made


def _product(left: torch.Tensor, right: torch.Tensor, *_: Any) -> float:
    return 2.0 * left.numel() * right.shape[-1]


def _added(_total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *_: Any) -> float:
    return _product(left, right)


def _linear(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> float:
    return 2.0 * x.numel() * weight.shape[0]


def _attention(query: torch.Tensor, key: torch.Tensor, *_: Any) -> float:
    return 4.0 * query.numel() * key.shape[-2]


def _attention_backward(_gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any) -> float:
    return 10.0 * query.numel() * key.shape[-2]


_COUNTS: dict[str, Callable[..., float]] = {
    "mm": _product, "bmm": _product, "addmm": _added, "baddbmm": _added, "linear_pointwise": _linear,
    "scaled_dot_product_flash_attention_for_cpu": _attention,
    "scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
}  # fmt: skip


def serve(start: Callable[[], tuple[Callable[[], None], Mapping[str, Any]]], warm_up: int) -> None:
    """Be the server, until standard input ends. `start` gives a step, and what is to be said of it."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever else is printed goes to standard error
    step, about = start()
    for _ in range(warm_up):
        step()
    with Products() as counted:
        step()
    say = {**about, "products_gflop": sum(counted.gflop.values()), "products_gflop_by_name": counted.gflop}
    answers.write(json.dumps({**say, "threads": torch.get_num_threads(), "torch": torch.__version__}) + "\n")
    for line in sys.stdin:
        taken: dict[str, list[float]] = {clock: [] for clock in CLOCKS}
        for _ in range(int(line)):
            before = {clock: read() for clock, read in CLOCKS.items()}
            step()
            for clock, read in CLOCKS.items():
                taken[clock].append(read() - before[clock])
        answers.write(json.dumps(taken) + "\n")


class ServerError(RuntimeError):
    """A server ended; the message has what it said last."""


class Server:
    """The other end: steps of another process, which stands still between them."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], said: Path) -> None:
        """`said`: the file that takes what it prints. Starting goes on meanwhile; `about` waits for it."""
        self.name, self._said = name, said
        self.taken: dict[str, list[list[float]]] = {clock: [] for clock in CLOCKS}  # [round][step]
        with said.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
                env=os.environ | dict(environment),
            )  # fmt: skip

    def about(self) -> dict[str, Any]:
        """What it said when it was ready: to be asked once, first. Raises ServerError."""
        return self._answer()

    def steps(self, count: int) -> None:
        """Let it take some: one round. Raises ServerError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        answer = self._answer()
        for clock, rounds in self.taken.items():
            rounds.append(answer[clock])

    def median(self, clock: str) -> float:
        """Of all steps."""
        return statistics.median(one for each in self.taken[clock] for one in each)

    def close(self) -> None:
        """Let it end, at once."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            last = "\n".join(self._said.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            raise ServerError(f"{self.name} ended with code {code}\n{last}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def by_turns(servers: Sequence[Server], rounds: int, steps: int) -> None:
    """In every round each takes some steps while the others stand still; who is first changes. Raises ServerError."""
    for number in range(rounds):
        first = number % len(servers)
        for server in (*servers[first:], *servers[:first]):
            server.steps(steps)


def times_as_fast(slow: Server, quick: Server, clock: str) -> float:
    """Median over the rounds of the ratio of their medians: what disturbs a round mostly disturbs both of its parts."""
    pairs = zip(slow.taken[clock], quick.taken[clock], strict=True)
    return statistics.median(statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs)
