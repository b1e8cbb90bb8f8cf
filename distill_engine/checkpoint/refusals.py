"""Which checkpoints a run must not take up, though they are whole: another run's, other ranks', another version's."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from distill_engine.checkpoint.folder import CheckpointInfo
from distill_engine.checkpoint.manifest import RefusedCheckpoint


def refuse_other_run(info: CheckpointInfo, identity: Mapping[str, Any], ranks: int, resize: bool) -> None:
    """Raises RefusedCheckpoint where the run's identity differs, or its number of ranks without `resize`."""
    rows = [(key, _shown(info.identity, key), _shown(identity, key)) for key in {**info.identity, **identity}]
    changes = [f"\n  {key}: {old} -> {new}" for key, old, new in sorted(rows) if old != new]
    if changes:
        raise RefusedCheckpoint(
            f"Checkpoint {info.folder} belongs to another run (checkpoint -> now):{''.join(changes)}\n"
            "A run can only be continued unchanged. Set these back, or choose another run folder (--run-dir)."
        )
    if info.world_size != ranks and not resize:
        raise RefusedCheckpoint(other_size(info.folder, info.world_size, ranks))


def refuse_other_parts(info: CheckpointInfo, parts: Collection[str]) -> None:
    """Raises RefusedCheckpoint where it does not hold exactly these parts."""
    missing = [f"lacks {name}" for name in parts if name not in info.parts]
    extra = [f"has {name} besides" for name in info.parts if name not in parts]
    if missing or extra:
        raise RefusedCheckpoint(
            f"Checkpoint {info.folder} {' and '.join(missing + extra)}: this program saves "
            f"{', '.join(parts)}. It was written by another version: go on with that version, or choose another "
            "run folder (--run-dir)."
        )


def other_size(where: Path, was: int, now: int) -> str:
    """Why a checkpoint of another number of ranks is not simply taken up, and what to do."""
    return (
        f"{where} was written by {was} ranks, this run has {now}. Batches and the optimizer's state are divided by "
        f"rank. To go on with {now}, the same examples in each step and the optimizer's state divided anew, add "
        f"--resize (RESIZE=1 for the job scripts). Otherwise start it with {was} ranks, or choose another run folder "
        "(--run-dir)."
    )


def _shown(identity: Mapping[str, Any], key: str) -> str:
    return json.dumps(identity[key]) if key in identity else "(absent)"
