"""One rank that measures what a training step really allocates, for test_plan_is_true.py.

Every allocation and release of the CPU allocator is recorded by torch's profiler, so that buffers inside operations,
of DeepSpeed and of autograd count as well. Cases: long examples, where activations are nearly everything, and short
ones, where weights and gradients are.
"""

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import step  # noqa: E402
from step_presets import Preset, Size  # noqa: E402

from distill_engine.engine import distributed  # noqa: E402
from distill_engine.recipe.schema import Recipe  # noqa: E402
from distill_engine.train.balancing import LossTerms  # noqa: E402
from distill_engine.train.term_gradients import TermGradients  # noqa: E402

TEACHER, STUDENT = Size(128, 512, 2, 6), Size(96, 384, 2, 3)
# kernels, precision, dropout, recomputing; ZeRO-3: prefetch, most live, kept; ZeRO-2: bucket
WHOLE = ("reference", "fp32", 0.0, False, (100_000, 300_000, 0), 400_000)
BLOCKS = ("fused", "bf16", 0.1, True, (300_000, 700_000, 2_000), 2_000_000)
CASES = {
    1: {"long_whole": (8, 64, 32, *WHOLE), "long_blocks": (8, 64, 32, *BLOCKS)},
    2: {"short_whole": (1, 8, 4, *WHOLE), "short_blocks": (1, 8, 4, *BLOCKS)},
}


def allocated(action: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What `action` returns; bytes that it leaves allocated (`kept`) and the most that it had at a time (`most`)."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = action()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return result, {"kept": now, "most": most}


def recipe_of(case: str, values: tuple):
    batch, contexts, labels, kernels, precision, dropout, recomputing, *_ = values
    preset = Preset(
        TEACHER, STUDENT, heads=4, vocabulary=2048, batch=batch, context_tokens=contexts, label_tokens=labels,
        definition="invariant", threads=1,
    )  # fmt: skip
    given = step.recipe_of(case, preset).model_dump()
    given["losses"]["kernels"] = dict.fromkeys(("attention", "hidden", "prediction"), kernels)
    given["losses"]["weights"]["encoder"] = 1.0
    given["student"] |= {"dropout": dropout, "activation_checkpointing": recomputing}
    given["logging"]["gradient_norm_every_steps"] = 1000  # the first step, and when it is asked for below
    return preset, Recipe.model_validate(given), precision


def configs_of(values: tuple, recipe: Recipe, precision: str, ranks) -> tuple[dict[str, Any], dict[str, Any]]:
    (prefetch, live, kept), bucket = values[-2:]
    student, teacher = step.ds_configs(recipe, precision, ranks)
    student["zero_optimization"]["reduce_bucket_size"] = bucket
    teacher["zero_optimization"] |= {
        "stage3_prefetch_bucket_size": prefetch,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": 1,
        "stage3_param_persistence_threshold": kept,
    }
    return student, teacher


def bytes_of(tensors) -> int:
    return sum(one.numel() * one.element_size() for one in {id(one): one for one in tensors}.values())


def at_rest(trainer) -> dict[str, int]:
    """What the engines hold between steps."""
    live, engine = trainer.teacher.engine, trainer.student._engine
    states = [t for state in engine.optimizer.optimizer.state.values() for t in state.values()]
    return {
        "output_embedding": bytes_of([] if live._embedding is None else [live._embedding]),
        "teacher_shard": bytes_of(p.ds_tensor for p in live._module.parameters()),
        "student": bytes_of(trainer.student.module.parameters()),
        "optimizer": bytes_of([*engine.optimizer.single_partition_of_fp32_groups, *states]),
    }


def most_gathered(trainer) -> int:
    """Bytes of the teacher's parameters that are whole, or on their way to be, at the fullest module of a pass."""
    module = trainer.teacher.engine._module
    parameters = list(module.parameters())
    seen: list[int] = []

    def look(*_: object) -> None:
        here = [p for p in parameters if p.ds_status is not ZeroParamStatus.NOT_AVAILABLE]
        seen.append(sum(p.ds_numel * p.ds_tensor.element_size() for p in here))

    hooks = [one.register_forward_pre_hook(look) for one in module.modules()]  # after DeepSpeed's own
    (batch,) = trainer.batches.next_group()
    trainer.teacher.engine.features(batch, trainer.objective.teacher_request())
    for hook in hooks:
        hook.remove()
    return max(seen)


def several_steps(trainer) -> dict[str, Any]:
    """`one_step`; where ranks talk, the least of three: a thread of their library may let go of a buffer late."""
    steps = [one_step(trainer) for _ in range(1 if trainer.ranks.world_size == 1 else 3)]
    for name in ("backward", "update", "whole"):
        steps[0][name]["most"] = min(one[name]["most"] for one in steps)
    return steps[0]


def one_step(trainer) -> dict[str, Any]:
    """The parts of a micro-batch and of a step, one by one, as train/loop.py calls them."""
    goal, ranks = trainer.objective, trainer.ranks
    (batch,) = trainer.batches.next_group()
    (divisor,) = goal.divisors([batch], ranks.sum, ranks.world_size)
    found: dict[str, Any] = {}
    request = goal.teacher_request()
    teacher_features, found["teacher"] = allocated(lambda: trainer.teacher.engine.features(batch, request))
    (measure,) = (hook.gradients.measure for hook in trainer.hooks.each if isinstance(hook, LossTerms))
    _, found["measuring"] = allocated(lambda: measure(1000, batch, teacher_features, divisor, ranks.sum))
    compare = TermGradients(goal, trainer.student.module, None, lambda: 1.0, ranks.device).measure
    given = batch, teacher_features, divisor, ranks.sum
    _, found["comparing"] = allocated(lambda: compare(1000, *given, None, "prediction"))
    student_features, found["student"] = allocated(lambda: trainer.student.features(batch, goal.student_request()))
    (terms, _), found["losses"] = allocated(lambda: goal.terms_and_hits(student_features, teacher_features, batch))
    _, found["backward"] = allocated(lambda: trainer.student.backward(goal.total(terms, divisor)))
    _, found["update"] = allocated(lambda: trainer.student.step(1e-4))
    teacher_features = student_features = terms = None
    _, found["whole"] = allocated(trainer._step)
    return found


def main() -> None:
    """Every case, one after another."""
    folder = Path(sys.argv[1])
    ranks = distributed.start()
    torch.set_num_threads(1)
    found = {}
    for case, values in CASES[ranks.world_size].items():
        preset, recipe, precision = recipe_of(case, values)
        configs = configs_of(values, recipe, precision, ranks)
        with step.trainer_of(recipe, preset, configs, ranks) as trainer:
            for _ in range(2):  # the first makes the optimizer's moments and DeepSpeed's order of modules
                trainer._step()
            found[case] = {"recipe": recipe.model_dump(mode="json"), "configs": configs}
            found[case] |= {"at_rest": at_rest(trainer), "moments": several_steps(trainer)}
            found[case] |= {"gathered": most_gathered(trainer) if ranks.world_size > 1 else 0}
    (folder / f"rank_{ranks.rank}.json").write_text(json.dumps(found))
    ranks.barrier()
    distributed.stop()


if __name__ == "__main__":
    main()
