"""Where the time of a step goes. On a CUDA device the clock is the stream's own, read only when asked."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("teacher", "student", "losses", "backward", "optimizer", "data", "rollout")


class Stopwatch:
    """Adds up seconds per phase between two readings."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the block to a phase."""
        if not self._cuda:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started
            return
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        yield
        after.record()
        self._events.append((name, before, after))

    def shares(self) -> tuple[dict[str, float], float]:
        """Share of wall time per phase (rest: `other`) and the wall seconds since the last reading; starts anew."""
        if self._events:
            torch.cuda.synchronize()
            for name, before, after in self._events:
                self._seconds[name] += before.elapsed_time(after) / 1000.0
        wall = max(time.perf_counter() - self._started, 1e-9)
        shares = {name: self._seconds[name] / wall for name in PHASES}
        shares["other"] = max(0.0, 1.0 - sum(shares.values()))
        self.restart()
        return shares, wall

    def restart(self) -> None:
        """Forget everything so far (after a validation or a save, which are no part of a step)."""
        self._seconds.clear()
        self._events.clear()
        self._started = time.perf_counter()
