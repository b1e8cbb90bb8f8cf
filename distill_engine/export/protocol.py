"""What an export target is: another program's form of a student, and how that program generates."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

RECORD = "distill_export.json"  # in every export but transformers' own: format, quantisation, sizes, agreement


class TargetError(ValueError):
    """A student that a target cannot represent, a quantisation that it does not have, or a library that is missing."""


class ExportedModel(Protocol):
    """A student as another program runs it. It has what `evaluate` uses of a transformers model, so that both are
    timed and compared by the same code."""

    config: Any
    generation_config: Any

    @property
    def device(self) -> Any:
        """Where ids have to be."""
        ...

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **settings: Any) -> Tensor:
        """[B, 1 + T] int64: start token and generated ids, right-padded, of [B, S] ids and mask."""
        ...


class Target(Protocol):
    """One `--format` of `distill export`.

    Found by name in the registry (seam `exports`). It is this small because finding the student, comparing replies,
    limits and publishing are the same for all.

    meaning        half a sentence for tables
    quantizations  what --quantize may be; empty: nothing
    generates      whether this program can run it, so that it is a backend of `distill latency` and of report cards
    inputs         of the families that it can represent
    """

    meaning: str
    quantizations: tuple[str, ...]
    generates: bool = False
    inputs: tuple[str, ...] = ("tokens",)

    def write(self, student: Path, target: Path, quantize: str | None, recipe: Path | None) -> None:
        """Make `target` from a transformers folder. Raises TargetError for what the target lacks.

        recipe  of the run that the student is from, where there is one
        """
        ...

    def open(self, folder: Path) -> ExportedModel | None:
        """What generates from such a folder on this machine; None where this program cannot run it."""
        ...


def missing_extra(library: str, extra: str) -> TargetError:
    """What to say where an optional library is not installed."""
    return TargetError(f"{library} is not installed. It comes with an extra: pip install 'distill-engine[{extra}]'.")


def files_mib(folder: Path, pattern: str) -> float:
    """MiB of the files of a folder that match."""
    return sum(file.stat().st_size for file in folder.glob(pattern)) / 2**20
