"""A narrower student out of its teacher: rank 0 looks at what matters in it, all ranks get what comes of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill_engine.assembly.student_module import layer_maps
from distill_engine.checkpoint.agreement import RankFailures, everywhere
from distill_engine.data.order.collate import Picks
from distill_engine.data.order.loader import picked_batch
from distill_engine.families.shape import Sizes
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import Adapter, adapt
from distill_engine.models.loading import Checkpoint
from distill_engine.setup.prepare import Prepared
from distill_engine.setup.training_data import mixture_of
from distill_engine.student.narrow import narrow
from distill_engine.student.projections import StudentModule
from distill_engine.student.watched import Watched
from distill_engine.values import Batch, Features

if TYPE_CHECKING:  # `distill check` tells what is kept, and needs no engine
    from distill_engine.engine.distributed import Ranks

_AT_ONCE = 8  # examples of a batch


def narrow_from_teacher(
    module: StudentModule,
    ready: Prepared,
    objective: Objective,
    ranks: Ranks,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Give a narrower student on the CPU, and its projections, values that come out of the teacher's. Collective.

    device  where rank 0 holds the teacher meanwhile, whole and in float32

    Raises RuntimeError on all ranks where that fails on the first.
    """

    def action() -> str:
        with ranks.unhurried("a narrower student out of the teacher"):
            return _narrowed(module, ready, objective, device) if ranks.rank == 0 else ""

    try:
        line = everywhere(ranks, action)[0]
    except RankFailures as failures:
        raise RuntimeError(f"student.init: teacher_width: {failures}") from failures
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the student's and the teacher's engines have other sizes
    for tensor in _tensors(module):
        tensor.copy_(ranks.broadcast(tensor))
    say(line)


@torch.no_grad()
def _narrowed(module: StudentModule, ready: Prepared, objective: Objective, device: torch.device) -> str:
    assert ready.teacher_folder is not None
    teacher = Checkpoint(ready.teacher_folder).load(torch.float32).to(device).eval()  # type: ignore[arg-type]
    batches = list(_first_examples(ready))
    choice = narrow(module.model, Watched(teacher, ready.family), batches, layer_maps(ready))
    if module.projections is not None:
        pairs = _features(module, adapt(teacher), objective, batches, device)
        module.projections.fit(pairs, objective.supervision, choice.channels)
    return told(ready)


def _features(
    module: StudentModule, teacher: Adapter, objective: Objective, batches: list[Batch], device: torch.device
) -> Iterator[tuple[Batch, Features, Features]]:
    """Of every batch, the student's own and the teacher's."""
    asked, of_teacher = (
        replace(request, logits=False, head=False)
        for request in (objective.student_request(), objective.teacher_request())
    )
    was = module.training
    module.eval()
    for batch in batches:
        yield batch, module.adapter(batch, asked), teacher(batch.to(device), of_teacher)
    module.train(was)


def _first_examples(ready: Prepared) -> Iterator[Batch]:
    """The examples that training begins with."""
    datasets, part = ready.train_datasets, ready.recipe
    mixture = mixture_of(ready)
    for start in range(0, part.student.importance_examples, _AT_ONCE):
        count = min(_AT_ONCE, part.student.importance_examples - start)
        picks = Picks(*mixture.window(start, start + count))
        yield picked_batch(datasets, picks, ready.layout, part.batch.pad_to_multiple_of)


def told(ready: Prepared) -> str:
    """In a line: how much of the teacher a narrower student keeps."""
    teacher, part = ready.teacher_shape, ready.recipe.student
    assert teacher is not None
    own = teacher.resized(Sizes(width=part.width, ffn_width=part.ffn_width, heads=part.heads))
    kept = f"{own.width} of {teacher.width} channels, {own.heads} of {teacher.heads} heads, {own.ffn} of {teacher.ffn}"
    return f"student: {kept} neurons of its teacher, by what they do in {part.importance_examples} training examples"


def _tensors(module: StudentModule) -> Iterator[Tensor]:
    yield from (parameter.data for parameter in module.parameters())
    yield from module.buffers()
