"""Losses and gradients: of one rank, of many, of several micro-batches, and of plain PyTorch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tiny_models as tiny
import torch
from engine_worker_bench import (
    ADAM,
    SGD,
    Bench,
    PlainTeacher,
    global_groups,
    plain_loss,
    plain_steps,
    rank_groups,
    trained,
    weights,
)

from distill_engine.data.order.collate import filler_batch
from distill_engine.engine.student import StudentEngineError
from distill_engine.families.shape import Sizes
from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.values import Batch, Stack

STEPS, EXAMPLES, LEARNING_RATE = 3, 8, 0.01
# name -> micro-batches of a step, padding to a multiple, order turned round
WAYS = {"whole": (1, 1, False), "in_two": (2, 1, False), "padded": (1, 16, False), "turned": (2, 4, True)}


def joined(bench: Bench) -> dict:
    """Three steps over the same examples in every way there is to share them out; plainly as well on one rank."""
    found = {f"blenderbot/{way}": _engine_run(bench, "blenderbot", *how) for way, how in WAYS.items()}
    found["bart/in_two"] = _engine_run(bench, "bart", 2, 1, False)
    if bench.ranks.world_size == 1:
        found |= {f"{family}/plain": _plain_run(bench, family) for family in ("blenderbot", "bart")}
    return found


def _engine_run(bench: Bench, family: str, micro_batches: int, pad_to: int, turned: bool) -> dict:
    goal = tiny.objective()
    module = tiny.student(bench.teachers / family, goal)
    student = bench.student(module, bench.student_ds(accumulation=micro_batches))
    teacher = bench.teacher(family)
    losses, norms = [], []
    for step in _steps(family):
        group = _shared_out(bench, step[::-1] if turned else step, family, micro_batches, pad_to)
        loss, outcome = bench.take_step(student, teacher, goal, group, LEARNING_RATE)
        losses.append(loss)
        norms.append(outcome.grad_norm)
    return {"losses": losses, "norms": norms, "weights": weights(module)}


def _plain_run(bench: Bench, family: str) -> dict:
    goal = tiny.objective()
    module = tiny.student(bench.teachers / family, goal).train()
    teacher = PlainTeacher(bench.teachers / family)
    batches = [tiny.batch(step, family) for step in _steps(family)]
    losses = [_loss_of(teacher, goal, batch) for batch in batches]
    values, gradients = plain_steps(module, losses, LEARNING_RATE)
    return {"losses": values, "norms": [float(g.norm()) for g in gradients], "weights": weights(module)}


def _loss_of(teacher: Any, goal: Objective, *batches: Batch) -> Callable[[Any], torch.Tensor]:
    """Mean over micro-batches of each one's own loss."""
    return lambda module: torch.stack([plain_loss(module, teacher, goal, batch) for batch in batches]).mean()


def _steps(family: str) -> list[list]:
    return [step[0] for step in global_groups(11, 1, STEPS, EXAMPLES, family)]


def _shared_out(bench: Bench, step: list, family: str, micro_batches: int, pad_to: int) -> list[Batch]:
    """This rank's micro-batches. The first rank gets fewer examples than the last, so that no count is equal."""
    size = len(step) // micro_batches
    parts = [step[number * size : (number + 1) * size] for number in range(micro_batches)]
    ranks = bench.ranks
    cut = size // 2 - 1 if ranks.world_size == 2 else 0
    mine = slice(0, cut) if ranks.rank < ranks.world_size - 1 else slice(cut, None)
    return [tiny.batch(part[mine], family, pad_to=pad_to) for part in parts]


def parlai(bench: Bench) -> dict:
    """The `parlai` definition over ranks and micro-batches, and the mean of every micro-batch's own loss, plainly."""
    goal = tiny.objective(definition="parlai")
    groups = global_groups(21, 4, STEPS, 3)  # per step: two micro-batches for each of two ranks
    module = tiny.student(bench.teachers / "blenderbot", goal)
    reference = tiny.student(bench.teachers / "blenderbot", goal).train()
    student = bench.student(module, bench.student_ds(accumulation=2))
    teacher, plain = bench.teacher(), PlainTeacher(bench.teachers / "blenderbot")
    rank, batches = bench.ranks.rank, [[tiny.batch(part, "blenderbot") for part in step] for step in groups]
    mine = [step[2 * rank : 2 * rank + 2] for step in batches]
    losses = [bench.take_step(student, teacher, goal, group, LEARNING_RATE)[0] for group in mine]
    wanted, _ = plain_steps(reference, [_loss_of(plain, goal, *step) for step in batches], LEARNING_RATE)
    return {"losses": losses, "wanted": wanted, "weights": weights(module), "wanted_weights": weights(reference)}


def single(bench: Bench) -> dict:
    """The gradient that the engine applies and the plain one of the joined batch, for several students."""
    narrow, wide = tiny.STUDENT_SIZES, Sizes(encoder_layers=1, decoder_layers=3, dropout=0.0)
    goal, few = tiny.objective(), tiny.objective(weights=LossWeights(task=1.0, prediction=2.0))
    return {
        "narrow": _gradient(bench, goal, narrow),
        "wide": _gradient(bench, tiny.objective(wide), wide, copied=True),
        "bart": _gradient(bench, goal, narrow, family="bart"),
        "checkpointed": _gradient(bench, goal, narrow, prepare=_checkpoint_activations),
        "frozen_tables": _gradient(bench, goal, narrow, prepare=_freeze_tables),
        "projections_unused": _gradient(bench, few, narrow, built_for=goal),
        "clipped": _gradient(bench, goal, narrow, clip=0.5),
        "one_rank_without_labels": _gradient(bench, few, narrow, last_rank_idle=True),
        "nobody_has_labels": _idle_step(bench, few, narrow),
    }


def _gradient(
    bench: Bench,
    goal: Objective,
    sizes: Sizes,
    family: str = "blenderbot",
    prepare: Callable[[Any], None] = lambda module: None,
    built_for: Objective | None = None,
    clip: float | None = None,
    copied: bool = False,
    last_rank_idle: bool = False,
) -> dict:
    """SGD with a learning rate of 1 moves the weights by the gradient."""
    folder, last = bench.teachers / family, bench.ranks.rank == bench.ranks.world_size - 1
    chosen = tiny.examples(6, family, seed=31)
    modules = [tiny.student(folder, built_for or goal, sizes, copied=copied) for _ in range(2)]
    for module in modules:
        prepare(module)
    student = bench.student(modules[0], bench.student_ds(clip=clip), SGD)
    batch = tiny.batch(chosen if last_rank_idle else chosen[:4] if last else chosen[4:], family)
    if last_rank_idle and last:
        batch = filler_batch(tiny.layout(family))
    before = weights(modules[0])
    loss, outcome = bench.take_step(student, bench.teacher(family), goal, [batch], learning_rate=1.0)
    reference = _loss_of(PlainTeacher(folder), goal, tiny.batch(chosen, family))
    (value,), (wanted,) = plain_steps(modules[1].train(), [reference], 1.0)
    return {
        "loss": (loss, value),
        "gradient": before - weights(modules[0]),
        "wanted": wanted,
        "norm": outcome.grad_norm,
        "frozen_moved": _frozen_moved(*modules),
        "trained": len(trained(modules[0])),
    }


def _frozen_moved(one: Any, other: Any) -> bool:
    """Whether frozen parameters differ between two modules that started equal."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs if not a.requires_grad)


def _checkpoint_activations(module: Any) -> None:
    module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _freeze_tables(module: Any) -> None:
    for stack in Stack:
        module.model.get_parameter(module.adapter.family.position_table(stack)).requires_grad_(False)


def _idle_step(bench: Bench, goal: Objective, sizes: Sizes) -> dict:
    module = tiny.student(bench.teachers / "blenderbot", goal, sizes)
    student = bench.student(module)
    before = weights(module)
    loss, outcome = bench.take_step(student, bench.teacher(), goal, [filler_batch(tiny.layout("blenderbot"))])
    return {"loss": loss, "applied": outcome.applied, "moved": not torch.equal(before, weights(module))}


def order_of_calls(bench: Bench) -> dict:
    """What the engine refuses between micro-batches, and that a refusal leaves the gradient as it was."""
    goal = tiny.objective()
    teacher = bench.teacher()
    group = [tiny.batch(tiny.examples(2, "blenderbot", seed), "blenderbot") for seed in (41, 42)]
    said, results = {}, []
    for disturbed in (True, False):
        module = tiny.student(bench.teachers / "blenderbot", goal)
        student = bench.student(module, bench.student_ds(accumulation=2))
        shares = _shares(bench, student, teacher, goal, group)
        student.backward(next(shares))
        if disturbed:
            said["step_too_early"] = _said(lambda engine=student: engine.step(0.1))
            said["save_between"] = _said(lambda engine=student: engine.save(bench.folder / "between"))
        student.backward(next(shares))
        if disturbed:
            spare = next(_shares(bench, student, teacher, goal, group))
            said["second_backward"] = _said(lambda engine=student, loss=spare: engine.backward(loss))
        student.step(0.1)
        results.append(weights(module))
    return {"said": said, "disturbed": results[0], "calm": results[1]}


def written_later(bench: Bench) -> dict:
    """What differs between a save and the files of a snapshot of the same moment, written two steps later; and between
    the former and a save of then."""
    found = {}
    goal = tiny.objective()
    for precision in ("fp32", "bf16"):
        folders = {name: bench.folder / f"{precision}_{name}" for name in ("at_once", "later", "two_steps_on")}
        config = bench.student_ds(f"zero2_{precision}.json")
        student = bench.student(tiny.student(bench.teachers / "blenderbot", goal), config, ADAM)
        teacher = PlainTeacher(bench.teachers / "blenderbot", student.dtype)
        groups = rank_groups(7, bench.ranks, 1, 4)
        for group in groups[:2]:
            bench.take_step(student, teacher, goal, group, 1e-2)
        student.save(folders["at_once"])
        write = student.snapshot(folders["later"])
        for group in groups[2:]:
            bench.take_step(student, teacher, goal, group, 1e-2)
        write()
        student.save(folders["two_steps_on"])
        bench.ranks.barrier()
        found[precision] = [_differing(folders["at_once"], folders[name]) for name in ("later", "two_steps_on")]
    return found


def _differing(one: Path, other: Path) -> list[str]:
    """Paths of the files that only one of two saves has, or that hold something else."""
    files = [{path.relative_to(of).as_posix() for path in of.rglob("*.pt")} for of in (one, other)]
    both = files[0] & files[1]
    read = partial(torch.load, weights_only=False)
    return sorted((files[0] ^ files[1]) | {name for name in both if not _same(read(one / name), read(other / name))})


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return _same(vars(one), vars(other)) if hasattr(one, "__dict__") else one == other


def _shares(bench: Bench, student: Any, teacher: Any, goal: Objective, group: list[Batch]):
    divisors = goal.divisors(group, bench.ranks.sum, bench.ranks.world_size)
    for batch, divisor in zip(group, divisors, strict=True):
        teacher_features = teacher.features(batch, goal.teacher_request())
        yield goal.total(goal.terms(student.features(batch, goal.student_request()), teacher_features, batch), divisor)


def _said(call: Callable[[], object]) -> str:
    try:
        call()
    except StudentEngineError as error:
        return str(error)
    return "nothing"
