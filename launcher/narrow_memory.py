"""Bytes that rank 0 needs before the first step, where a narrower student comes out of its teacher (docs/narrow.md).

tests/unit/launcher/test_narrow_memory.py compares them with the tensors of a real one.
"""

from __future__ import annotations

from collections.abc import Iterator

from distill_engine.families.shape import Shape
from distill_engine.values import Stack
from launcher.job import FULL, Job

AT_ONCE = 8  # examples of a batch, of distill_engine.assembly.narrowing; a test keeps them equal
_DOUBLE = 8


def narrowing(job: Job) -> float:
    """The teacher whole and in 32 bits, what its layers read and give on one batch, and the sums of least squares."""
    if job.teacher is None or not job.recipe.student.narrowed:
        return 0.0
    data, teacher = job.recipe.data, job.teacher
    seen = looked_at(teacher, job.student, AT_ONCE * data.context_tokens, AT_ONCE * data.label_tokens)
    return float(teacher.parameters * FULL + seen + sums(teacher, job.student))


def looked_at(teacher: Shape, own: Shape, contexts: int, labels: int) -> int:
    """Of the linear maps of layers that are copied, and of all norms: a copy of what each reads and of what it
    gives."""
    found, norms = 0, 2 * teacher.width
    for stack, positions in ((Stack.ENCODER, contexts), (Stack.DECODER, labels)):
        one = teacher.width + teacher.inner_of(stack)  # read and given by a map of an attention
        wide = teacher.width + teacher.ffn_of(stack)
        layer = positions * (4 * one + (3 if teacher.form.gated else 2) * wide)
        if stack is Stack.DECODER:
            layer += labels * 2 * one + contexts * 2 * one
        of_layers = (2 if stack is Stack.ENCODER else 3) * teacher.depth(stack)
        found += own.depth(stack) * layer + positions * (of_layers + teacher.form.outer_norms) * norms
    return found * FULL


def sums(teacher: Shape, own: Shape) -> int:
    """For each vector x [n] of which the student holds z [k]: sums over z z' and x z', A, and what A is drawn to."""
    return sum(count * (k * k + 3 * n * k) * _DOUBLE for n, k, count in _fits(teacher, own) if k < n)


def _fits(teacher: Shape, own: Shape) -> Iterator[tuple[int, int, int]]:
    """n, k and how many: behind norms, of the values of attentions, of neurons; in the layers that are copied."""
    for stack in Stack:
        depth, attentions = own.depth(stack), 1 if stack is Stack.ENCODER else 2
        yield teacher.width, own.width, depth * (attentions + 1)
        yield teacher.inner_of(stack), own.inner_of(stack), depth * attentions
        yield teacher.ffn_of(stack), own.ffn_of(stack), depth
    yield teacher.width, own.width, 1  # the encoder's output, which all cross-attentions read
