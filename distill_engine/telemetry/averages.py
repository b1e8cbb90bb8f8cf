"""Running averages that stay on the device until somebody wants to read them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


class RanksDisagreeError(RuntimeError):
    """The ranks hold different metric names, so their sums cannot be added."""


class Averages:
    """Named sums and counts in float64, read back only by `reduce`.

    Adding never waits for the device. Every rank must hold the same names when it reduces: names that a
    rank may not meet (a dataset without an example there) are declared up front and start at 0.
    float64 exists on CPU and CUDA, not on Apple's MPS.
    """

    def __init__(self, device: torch.device | str = "cpu", names: Iterable[str] = ()) -> None:
        self._device = torch.device(device)
        self._declared = tuple(names)
        self._cells: dict[str, tuple[Tensor, Tensor]] = {}
        self._packs: dict[tuple[str, ...], Tensor] = {}  # [N + K]: sums, counts
        self._known: dict[tuple[str, ...], list[float]] = {}  # counts that the host knows
        self._reset()

    def add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Adds [] `total` and its [] `count` (any real dtype, gradients are not followed)."""
        held = self._cells.get(name)
        if held is None:
            held = self._cells[name] = self._zeros()
        held[0].add_(total.detach())
        held[1].add_(count.detach() if isinstance(count, Tensor) else count)

    def add_all(self, names: tuple[str, ...], values: Tensor, counts: Sequence[float] = ()) -> None:
        """Adds many at once, by one operation on the device: values [N + K], first every total, then the counts of the
        first K names; those of the others, which the host knows, are `counts`."""
        held = self._packs.get(names)
        if held is None:
            held = self._packs[names] = torch.zeros(len(values), dtype=torch.float64, device=self._device)
            self._known[names] = [0.0] * len(counts)
        held.add_(values.detach())
        self._known[names] = [known + more for known, more in zip(self._known[names], counts, strict=True)]

    def reduce(self, sum_across_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Global total / count per name, names sorted; starts over afterwards.

        `sum_across_ranks` is called once with one [2N + 2] float64 tensor and returns the sum of all ranks'
        tensors. A name whose global count is 0 is left out. This is the only place that waits for the device.
        Raises RanksDisagreeError when the ranks hold equally many but different names.
        """
        self._unpack()
        names = sorted(self._cells)
        signature = float(zlib.crc32("\n".join(names).encode()))
        check = torch.tensor([1.0, signature], dtype=torch.float64, device=self._device)
        cells = [cell for name in names for cell in self._cells[name]]
        packed = torch.cat([check, torch.stack(cells)]) if cells else check
        ranks, signatures, *values = sum_across_ranks(packed).tolist()
        # crc32 < 2^32 and ranks < 2^20: the product is exact in float64.
        if signatures != signature * ranks:
            raise RanksDisagreeError(
                f"The {ranks:.0f} ranks average different metrics; this one holds {names}. All ranks must hold the "
                "same names: declare every name when Averages is built."
            )
        self._reset()
        return {
            name: total / count
            for name, total, count in zip(names, values[::2], values[1::2], strict=True)
            if count != 0
        }

    def _unpack(self) -> None:
        """What was added together goes to the cells of its names."""
        for names, held in self._packs.items():
            totals, counts = held[: len(names)], [*held[len(names) :], *self._known[names]]
            for name, total, count in zip(names, totals, counts, strict=True):
                self.add(name, total, count)

    def _reset(self) -> None:
        self._packs, self._known = {}, {}
        self._cells = {name: self._zeros() for name in self._declared}

    def _zeros(self) -> tuple[Tensor, Tensor]:
        return self._zero(), self._zero()

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self._device)
