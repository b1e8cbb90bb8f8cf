"""Parts of a checkpoint: what is saved, each in a sub-folder of its own."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from distill_engine.checkpoint.files import write_file

JSON_FILE = "state.json"


class Part(Protocol):
    """Something that a run needs to go on as if it had never stopped.

    `Checkpoints` calls both methods on every rank with the same existing folder, which is this part's alone. The part
    names its files, different ones per rank where ranks differ, with `rank_<number>` in the name: that rank forces
    the file to disk and digests it (rank 0 does where no rank is named). Names do not start with a dot.

    `save` may raise on one rank only: the checkpoint is then given up on all ranks and training goes on. A part whose
    `save` or `load` talks to other ranks must make the same collective calls on every rank also when writing fails on
    one, and raise only after the last of them; otherwise the others wait for ever.
    """

    def save(self, folder: Path) -> None:
        """Write this rank's files."""

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote. Raises where a file is missing or does not fit."""


@runtime_checkable
class Stateful(Protocol):
    """An object with a state of JSON values, equal on all ranks."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


def snapshot(part: Part, folder: Path) -> Callable[[], None]:
    """Take down what `part.save(folder)` would write now; the action that is returned writes it later.

    That action talks to no other rank and may run in any thread while training goes on. A part that has a method
    `snapshot` does so itself; any other one is written at once.
    """
    take: Callable[[Path], Callable[[], None]] | None = getattr(part, "snapshot", None)
    if take is not None:
        return take(folder)
    part.save(folder)
    return lambda: None


class WatchedPart:
    """A part that tells when it begins to be written or read."""

    def __init__(self, part: Part, name: str, beat: Callable[[str], None]) -> None:
        self._part, self._name, self._beat = part, name, beat

    def save(self, folder: Path) -> None:
        """As the part itself."""
        self._beat(f"writing part {self._name} of a checkpoint")
        self._part.save(folder)

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """As the part itself."""
        self._beat(f"writing part {self._name} of a checkpoint")
        return snapshot(self._part, folder)

    def load(self, folder: Path) -> None:
        """As the part itself."""
        self._beat(f"reading part {self._name} of a checkpoint")
        self._part.load(folder)


class JsonPart:
    """A part for small states that are equal on all ranks: rank 0 writes, every rank reads."""

    def __init__(self, holder: Stateful, rank: int) -> None:
        self.holder = holder
        self.rank = rank

    def save(self, folder: Path) -> None:
        """Write `state.json` (rank 0 only)."""
        self.snapshot(folder)()

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """The state as text."""
        if self.rank != 0:
            return lambda: None
        content = json.dumps(self.holder.state_dict(), indent=1).encode()
        return lambda: write_file(folder / JSON_FILE, content)

    def load(self, folder: Path) -> None:
        """Read `state.json`."""
        self.holder.load_state_dict(json.loads((folder / JSON_FILE).read_text(encoding="utf-8")))


class RngPart:
    """The random streams of every rank: Python's, numpy's, torch's on the CPU and on this rank's GPU if it has one.

    A rank that the checkpoint does not know (more ranks go on than wrote it) gets streams that follow from those of
    rank 0 and its own number: new ones, and the same whenever the run goes on from there.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def save(self, folder: Path) -> None:
        """Write `rank_<number>.pt`, readable without unpickling any class."""
        self.snapshot(folder)()

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """The streams where they are now."""
        content = io.BytesIO()
        torch.save(_random_state(), content)
        return lambda: write_file(self._file(folder, self.rank), content.getvalue())

    def load(self, folder: Path) -> None:
        """Put this rank's streams back, or make new ones. ValueError if they were saved with a GPU and this rank has
        none."""
        path = self._file(folder, self.rank)
        if path.exists() or not self._is_newcomer(folder):
            _set_random_state(torch.load(path, map_location="cpu", weights_only=True), path)
        else:
            _seed_from(torch.load(self._file(folder, 0), map_location="cpu", weights_only=True), self.rank)

    def _is_newcomer(self, folder: Path) -> bool:
        """Whether all ranks before some number have a file, and this rank comes after them."""
        known = len(list(folder.glob("rank_*.pt")))
        return 0 < known <= self.rank and all(self._file(folder, rank).exists() for rank in range(known))

    def _file(self, folder: Path, rank: int) -> Path:
        return folder / f"rank_{rank:05d}.pt"


def _random_state() -> dict[str, Any]:
    """All streams as tensors and plain numbers."""
    _, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy_keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_rest": (int(position), int(has_gauss), float(cached_gaussian)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any], path: Path) -> None:
    if state["cuda"] is not None and not torch.cuda.is_available():
        raise ValueError(f"{path} was saved with a GPU, this rank has none; go on on the same kind of machine.")
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    np.random.set_state(("MT19937", state["numpy_keys"].numpy().astype(np.uint32), *state["numpy_rest"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


def _seed_from(state: dict[str, Any], rank: int) -> None:
    """Streams that nothing else has: seeded by a digest of another rank's."""
    content = state["torch"].numpy().tobytes() + state["numpy_keys"].numpy().tobytes() + str(rank).encode()
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1  # torch takes 63 bits without a sign
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
