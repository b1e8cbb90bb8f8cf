"""What of a DeepSpeed configuration has changed since a run was started last, and which of it has no effect any more.

DeepSpeed takes the loss scaler with all its settings, and the clipping, out of the checkpoint, whatever its JSON says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Dotted paths of a student's configuration -> what a checkpoint brings instead.
_FROM_CHECKPOINT = {
    "fp16.loss_scale": "the loss scaler",
    "fp16.initial_scale_power": "the loss scaler",
    "fp16.loss_scale_window": "the loss scaler",
    "fp16.hysteresis": "the loss scaler",
    "fp16.consecutive_hysteresis": "the loss scaler",
    "fp16.min_loss_scale": "the loss scaler",
    "gradient_clipping": "the clipping",
}
# Another number of ranks changes these; that is said elsewhere (resizing.py).
_SHARED_OUT = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def changes_since(file: Path, new: Mapping[str, Any], *, resumes: bool) -> list[str]:
    """`config_changes` since an earlier start wrote `file`; none if it is not there or cannot be read."""
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return config_changes(file.stem, old, new, resumes=resumes) if isinstance(old, dict) else []


def config_changes(name: str, old: Mapping[str, Any], new: Mapping[str, Any], *, resumes: bool) -> list[str]:
    """A line for each difference of two final configurations: `ds_config fp16.hysteresis: 2 -> 4`.

    resumes  whether a checkpoint is taken up, which decides some of them
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    lines = []
    for path in [*before, *(path for path in after if path not in before)]:
        if path in _SHARED_OUT or before.get(path, _ABSENT) == after.get(path, _ABSENT):
            continue
        kept = _FROM_CHECKPOINT.get(path) if resumes else None
        rest = f" (no effect: {kept} goes on as it is in the checkpoint)" if kept else ""
        lines.append(f"{name} {path}: {_shown(before, path)} -> {_shown(after, path)}{rest}")
    return lines


_ABSENT = object()


def _shown(leaves: Mapping[str, Any], path: str) -> str:
    return json.dumps(leaves[path]) if path in leaves else "(absent)"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value; an empty object and a list are one value."""
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
