"""All parts of a checkpoint called in turn, where each may fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from distill_engine.checkpoint.faults import fault_point
from distill_engine.checkpoint.parts import Part, snapshot


class PartFailed(Exception):
    """A part raised; carries which and what."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name, error)
        self.name = name
        self.error = error


def take_parts(temporary: Path, parts: Mapping[str, Part], writes: list[Callable[[], None]], snapshots: bool) -> None:
    """Put the actions that write the parts into `writes`, each naming its part if it fails; or write them now."""

    def take(name: str, part: Part) -> None:
        fault_point("before_part")
        if snapshots:
            writes.append(partial(_write_part, name, snapshot(part, temporary / name)))
        else:
            part.save(temporary / name)

    each_part(parts, take)()


def _write_part(name: str, write: Callable[[], None]) -> None:
    try:
        write()
    except Exception as error:
        raise PartFailed(name, error) from error


def each_part(parts: Mapping[str, Part], call: Callable[[str, Part], None]) -> Callable[[], None]:
    """An action that calls every part, also after one has failed, and then raises what failed first.

    Stopping at the first failure would leave other ranks alone in a collective call of the next part.
    """

    def action() -> None:
        failed: PartFailed | None = None
        for name, part in parts.items():
            try:
                call(name, part)
            except Exception as error:  # agreed on by all ranks afterwards
                failed = failed or PartFailed(name, error)
        if failed is not None:
            raise failed from failed.error

    return action
