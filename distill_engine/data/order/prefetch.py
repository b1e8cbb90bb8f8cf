"""Work done ahead of time by one background thread, handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Product = TypeVar("Product")


class Prefetcher(Generic[Product]):
    """Calls make(0), make(1), ... in one thread, at most `ahead` calls before they are taken."""

    def __init__(self, make: Callable[[int], Product], *, count: int | None = None, ahead: int = 2) -> None:
        """`count`: how many products there are; None: no end. Nothing is made before the first `take`."""
        self._make = make
        self._count = count
        self._ahead = ahead
        self._made = 0
        self._waiting: deque[Future[Product]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")

    def take(self) -> Product:
        """The next product; waits for it. An exception of `make` is raised here, and again at every later take."""
        self._fill()
        product = self._waiting[0].result()
        self._waiting.popleft()
        self._fill()
        return product

    def close(self) -> None:
        """Stop the thread; what is being made is waited for and dropped. May be called twice."""
        self._waiting.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        while len(self._waiting) < self._ahead and (self._count is None or self._made < self._count):
            self._waiting.append(self._thread.submit(self._make, self._made))
            self._made += 1
