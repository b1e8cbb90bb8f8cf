"""A loader whose next micro-batch can be looked at before its step begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from distill_engine.data.order.loader import TrainLoader
from distill_engine.values import Batch


class AheadLoader:
    """The loader's own batches, on the device, in its order.

    What was looked at and not taken does not count: position, epoch and state are those of the last group that was
    taken, so that a checkpoint between two steps is the one that it would be without.
    """

    def __init__(self, loader: TrainLoader, device: torch.device) -> None:
        self._loader = loader
        self._device = device
        self._waiting: list[Batch] | None = None
        self.goes_on: Callable[[], bool] = lambda: True  # whether a step is known to follow the one that was taken
        self._remember()

    @property
    def examples(self) -> int:
        """As the loader's."""
        return self._examples

    @property
    def epoch(self) -> float:
        """As the loader's."""
        return self._epoch

    def upcoming(self) -> Batch | None:
        """The first micro-batch of the group that comes next; None where none comes, or where making it failed: what
        is wrong with it is `next_group`'s to say, should the run get there."""
        if self._waiting is None:
            if not self.goes_on():
                return None
            try:
                group = self._loader.next_group()
            except Exception:  # whatever it was: the loader raises it again
                return None
            self._waiting = self._here(group)
        return self._waiting[0]

    def next_group(self) -> list[Batch]:
        """As the loader's."""
        group, self._waiting = self._waiting or self._here(self._loader.next_group()), None
        self._remember()
        return group

    def state_dict(self) -> dict[str, int | str]:
        """As the loader's."""
        return self._state

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """As the loader's."""
        self._loader.load_state_dict(state)
        self._waiting = None
        self._remember()

    def close(self) -> None:
        """As the loader's."""
        self._loader.close()

    def _here(self, group: list[Batch]) -> list[Batch]:
        return [batch.to(self._device) for batch in group]

    def _remember(self) -> None:
        loader = self._loader
        self._state, self._examples, self._epoch = loader.state_dict(), loader.examples, loader.epoch
