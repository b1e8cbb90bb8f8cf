"""A DeepSpeed JSON and a recipe -> the final dict that DeepSpeed is given. The only batch arithmetic.

The recipe owns what is learnt (batch, clipping, optimizer, learning rate), the JSON owns how (ZeRO, precision,
communication). A value that both give must be equal. Nothing is `auto`, nothing unknown is passed on. All that
is wrong with a file is reported at once. Needs neither torch nor deepspeed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from distill_engine.engine.config import Placement
from distill_engine.engine.ds_checks import (
    at,
    checkpoint_problems,
    conflicts,
    enabled,
    offload_problems,
    optimizer_conflicts,
    overflow_problems,
    placement_problems,
    problems_of_both,
    reduction_problems,
)
from distill_engine.engine.ds_keys import REFUSED, REFUSED_FOR_STUDENT, REFUSED_FOR_TEACHER

Precision = Literal["fp16", "bf16", "fp32"]

STUDENT_STAGE = 2
TEACHER_STAGE = 3


class DsConfigError(ValueError):
    """A DeepSpeed JSON that cannot be used; `problems` has all reasons, `source` names the file."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        """Join the problems into one text, the file's name on top."""
        self.source = source
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {problem}" for problem in self.problems)]))


class DsConfigFile(dict[str, Any]):
    """The content of a DeepSpeed JSON that remembers where it stands, for messages."""

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        """`source` is the file's path as the user wrote it."""
        super().__init__(values)
        self.source = source


def load_ds_config(path: Path) -> DsConfigFile:
    """Read a DeepSpeed JSON as it stands; the values are checked when a final config is made from it.

    Raises DsConfigError when the file is missing, is no UTF-8 JSON object, or gives a key twice.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: this is not valid JSON: {error.msg}."
        raise DsConfigError(str(path), [reason]) from None
    except OSError as error:
        raise DsConfigError(str(path), [f"the file cannot be read: {error.strerror}."]) from error
    except ValueError as error:  # bad UTF-8, a key given twice
        raise DsConfigError(str(path), [f"{error}."]) from None
    if not isinstance(values, dict):
        raise DsConfigError(str(path), [f"the file holds {values!r}. It should hold one JSON object."])
    return DsConfigFile(str(path), values)


def student_config(
    base: Mapping[str, Any],
    *,
    batch_per_rank: int,
    accumulation_steps: int,
    world_size: int,
    clip_norm: float | None,
    fp16_supported: bool,
    bf16_supported: bool,
    optimizer: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The final config of the student's ZeRO-2 engine, and one note line for each substitution.

    optimizer  the recipe's optimizer section as a dict; compared with the JSON's `optimizer` block, if it has
               one. The engine builds the optimizer itself, so that block is not passed on.

    Gradients are summed over ranks, not averaged: losses are divided by global counts before the backward pass.
    Raises DsConfigError with everything that is wrong.
    """
    owned = {
        "train_micro_batch_size_per_gpu": (batch_per_rank, "batch.per_rank"),
        "gradient_accumulation_steps": (accumulation_steps, "batch.accumulation_steps"),
        "train_batch_size": (
            batch_per_rank * accumulation_steps * world_size,
            f"batch.per_rank x batch.accumulation_steps x {world_size} ranks",
        ),
        "gradient_clipping": (clip_norm or 0.0, "optimizer.clip_norm"),
    }
    problems = [
        *problems_of_both(base, {**REFUSED, **REFUSED_FOR_STUDENT}, STUDENT_STAGE, "student"),
        *conflicts(base, owned),
        *optimizer_conflicts(base, optimizer or {}),
        *reduction_problems(base),
        *offload_problems(base),
        *checkpoint_problems(base),
        *overflow_problems(base),
    ]
    _raise_if_any(base, problems)
    final = copy.deepcopy(dict(base))
    final.pop("optimizer", None)
    final |= {key: value for key, (value, _) in owned.items()}
    final["gradient_allreduce_op"] = "sum"
    # The recipe's optimizers are torch's own; without these two DeepSpeed refuses SGD, and Adam under offload.
    final["zero_allow_untested_optimizer"] = True
    final["zero_force_ds_cpu_optimizer"] = False
    return final, _settle_precision(final, fp16_supported, bf16_supported)


def teacher_config(
    base: Mapping[str, Any],
    *,
    dtype: Precision,
    batch_per_rank: int = 1,
    world_size: int = 1,
    placement: Placement = "zero3",
) -> dict[str, Any]:
    """The final config of the teacher's inference-only ZeRO-3 engine.

    dtype      the student's final precision (`precision_of`): both models compute in the same one
    placement  the recipe's teacher.placement; a `replica` has no engine and uses nothing of this

    Raises DsConfigError with everything that is wrong.
    """
    problems = [*problems_of_both(base, {**REFUSED, **REFUSED_FOR_TEACHER}, TEACHER_STAGE, "teacher")]
    problems += placement_problems(base, placement)
    problems += [
        f"{name}.enabled is true, but the student trains in {dtype}. The teacher's precision follows the "
        f"student's. Remove the {name} block."
        for name in ("fp16", "bf16")
        if name != dtype and enabled(base, name)
    ]
    _raise_if_any(base, problems)
    final = copy.deepcopy(dict(base))
    final |= {
        "train_micro_batch_size_per_gpu": batch_per_rank,
        "gradient_accumulation_steps": 1,
        "train_batch_size": batch_per_rank * world_size,
    }
    # otherwise DeepSpeed replaces torch.nn.functional.linear for the whole process, the student's included
    final["zero_optimization"]["memory_efficient_linear"] = False
    if placement == "offload":
        final["zero_optimization"].setdefault("offload_param", {})["device"] = "cpu"
    _set_precision(final, dtype)
    return final


def precision_of(config: Mapping[str, Any]) -> Precision:
    """The precision that a final config asks for."""
    if enabled(config, "fp16"):
        return "fp16"
    return "bf16" if enabled(config, "bf16") else "fp32"


def _settle_precision(final: dict[str, Any], fp16_supported: bool, bf16_supported: bool) -> list[str]:
    """Put the precision that the accelerator can do into `final`; a note line where it is not the asked one."""
    asked = precision_of(final)
    supported = {"fp16": fp16_supported, "bf16": bf16_supported, "fp32": True}
    if supported[asked]:
        _set_precision(final, asked)
        return []
    chosen: Precision = "bf16" if asked == "fp16" and bf16_supported else "fp32"
    _set_precision(final, chosen)
    if final.get("communication_data_type") == asked:
        final["communication_data_type"] = chosen
    if at(final, "data_types.grad_accum_dtype") == asked:
        final["data_types"]["grad_accum_dtype"] = chosen
    rest = ", without loss scaling" if asked == "fp16" else ""
    return [f"{asked} is asked for, but this accelerator cannot do it: training in {chosen}{rest}"]


def _set_precision(final: dict[str, Any], precision: Precision) -> None:
    """Leave one precision block, or none for fp32; its other keys stay."""
    for name in ("fp16", "bf16"):
        block = final.pop(name, {})
        if name == precision:
            final[name] = {**block, "enabled": True}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"{key} is given twice; a key has one value")
        seen[key] = value
    return seen


def _raise_if_any(base: Mapping[str, Any], problems: Sequence[str]) -> None:
    if problems:
        raise DsConfigError(str(getattr(base, "source", "DeepSpeed config")), problems)
