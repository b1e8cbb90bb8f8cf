"""What is wrong with a DeepSpeed JSON for one of the two engines: each check yields sentences, none raises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from distill_engine.engine.ds_keys import BLOCKS
from distill_engine.recipe.problem import did_you_mean

# Names of optimizer.params in DeepSpeed's JSON -> names of the recipe's optimizer section.
OPTIMIZER_PARAMS = {
    "lr": "learning_rate",
    "betas": "betas",
    "eps": "eps",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "amsgrad": "amsgrad",
}


def problems_of_both(base: Mapping[str, Any], refused: Mapping[str, str], stage: int, who: str) -> Iterator[str]:
    """What neither of the two engines accepts."""
    yield from _unknown_keys(base)
    yield from (
        f"{path} is 'auto'. Two places would decide it. Give a value, or remove the key."
        for path, value in _walk(base)
        if value == "auto"
    )
    for path, reason in refused.items():
        if at(base, path) is not None:
            yield f"{path} is not accepted. {reason}. Remove it."
    yield from _precision_problems(base)
    found = at(base, "zero_optimization.stage")
    if found is None or isinstance(found, bool) or found != stage:
        has = "is missing" if found is None else f"is {found!r}"
        yield f"zero_optimization.stage {has}. The {who} runs under ZeRO-{stage}. Set it to {stage}."


def _precision_problems(base: Mapping[str, Any]) -> Iterator[str]:
    for name in ("fp16", "bf16"):
        value = at(base, f"{name}.enabled")
        if value is not None and not isinstance(value, bool):
            yield f"{name}.enabled is {value!r}. It should be true or false."
    if enabled(base, "fp16") and enabled(base, "bf16"):
        yield "fp16.enabled and bf16.enabled are both true. A model has one precision. Set one of them to false."


def _unknown_keys(base: Mapping[str, Any]) -> Iterator[str]:
    for block, known in BLOCKS.items():
        values = at(base, block) if block else base
        if not isinstance(values, Mapping):
            if values is not None:
                yield f"{block} is {values!r}. It should be an object: {{...}}."
            continue
        for key in values:
            if key not in known:
                advice = did_you_mean(key, known) or f"The keys are: {', '.join(sorted(known))}."
                yield f"{f'{block}.{key}' if block else key} is not a key that DeepSpeed has here. {advice}"


def conflicts(base: Mapping[str, Any], owned: Mapping[str, tuple[Any, str]]) -> Iterator[str]:
    """A key that the recipe owns (key -> value, name in the recipe) is absent or equal."""
    for key, (value, recipe_key) in owned.items():
        if key in base and not _equal(base[key], value):
            yield _conflict(key, base[key], recipe_key, value)


def _conflict(key: str, found: Any, recipe_key: str, value: Any) -> str:
    return (
        f"{key} is {found!r}, but the recipe says {value!r} ({recipe_key}). The recipe owns what is learnt. "
        f"Remove {key} from this file, or make the two equal."
    )


def optimizer_conflicts(base: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    """The JSON may repeat the recipe's optimizer, but not contradict it."""
    block = base.get("optimizer")
    if block is None:
        return
    params = block.get("params", {}) if isinstance(block, Mapping) else None
    if not isinstance(params, Mapping) or not recipe:
        yield f"optimizer is {block!r}. The recipe owns it (optimizer). Remove it from this file."
        return
    kind = block.get("type", recipe.get("name"))
    if str(kind).lower() != str(recipe.get("name")).lower():
        yield _conflict("optimizer.type", kind, "optimizer.name", recipe.get("name"))
    for key, found in params.items():
        name = OPTIMIZER_PARAMS.get(key)
        if name is None:
            yield f"optimizer.params.{key} is not accepted. The recipe owns the optimizer. Remove it."
        elif not _equal(found, recipe.get(name)):
            yield _conflict(f"optimizer.params.{key}", found, f"optimizer.{name}", recipe.get(name))


def reduction_problems(base: Mapping[str, Any]) -> Iterator[str]:
    """Ranks add their gradients up."""
    op = base.get("gradient_allreduce_op", "sum")
    if op != "sum":
        yield (
            f"gradient_allreduce_op is {op!r}. Losses are divided by global counts, so ranks add up their "
            f"gradients. Remove it, or set it to 'sum'."
        )


def overflow_problems(base: Mapping[str, Any]) -> Iterator[str]:
    """A step whose gradient is not finite is skipped, in every precision."""
    if at(base, "bf16.check_grad_overflow") is False:
        yield (
            "bf16.check_grad_overflow is false. A gradient that is not finite would then destroy the weights. "
            "Remove it, or set it to true."
        )


def checkpoint_problems(base: Mapping[str, Any]) -> Iterator[str]:
    """What is saved can be taken up again, exactly."""
    if at(base, "zero_optimization.elastic_checkpoint"):
        yield (
            "zero_optimization.elastic_checkpoint is true. DeepSpeed cannot read such a checkpoint back with the "
            "recipe's optimizers. Remove it: with --resize a run goes on with another number of ranks without it."
        )
    if at(base, "zero_optimization.load_from_fp32_weights") is False:
        yield (
            "zero_optimization.load_from_fp32_weights is false. Every restart would round the fp32 weights. "
            "Remove it, or set it to true."
        )


def offload_problems(base: Mapping[str, Any]) -> Iterator[str]:
    """Optimizer state goes where ZeRO-2 can put it."""
    device = at(base, "zero_optimization.offload_optimizer.device")
    if device not in (None, "none", "cpu"):
        yield (
            f"zero_optimization.offload_optimizer.device is {device!r}. ZeRO-2 offloads to the CPU only. "
            f"Set it to 'cpu'."
        )


def placement_problems(base: Mapping[str, Any], placement: str) -> Iterator[str]:
    """The teacher's shards are where the recipe wants them."""
    device = at(base, "zero_optimization.offload_param.device")
    found = f"zero_optimization.offload_param.device is {device!r}, but the recipe says teacher.placement: {placement}"
    if placement == "offload" and device not in (None, "cpu"):
        yield f"{found}, which keeps the shards in host memory. Remove the device, or set it to 'cpu'."
    elif placement != "offload" and device not in (None, "none"):
        yield f"{found}, which keeps no shards off the GPUs. Remove offload_param, or set teacher.placement: offload."


def enabled(config: Mapping[str, Any], block: str) -> bool:
    """Whether the fp16 or bf16 block is switched on."""
    return at(config, f"{block}.enabled") is True


def at(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every leaf."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _walk(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _walk(child, f"{path}.{index}")
    else:
        yield path, value


def _equal(found: Any, value: Any) -> bool:
    if isinstance(found, list | tuple) and isinstance(value, list | tuple):
        return len(found) == len(value) and all(_equal(a, b) for a, b in zip(found, value, strict=True))
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (found, value))
    return math.isclose(found, value, rel_tol=1e-12) if numbers else bool(found == value)
