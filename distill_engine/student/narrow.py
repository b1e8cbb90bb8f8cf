"""Fills a narrower student from its teacher: what `importance` chose is copied, and what is gone is made up for.

Each linear map of the teacher reads a vector x of which the student holds a part z (channels behind a norm over fewer
channels, fewer heads, fewer neurons). x is predicted from z by least squares on real examples, x ~ A z + c, and the
student's map is W A z + (W c + b), of which the rows that it keeps are taken: where x can be told from z nothing is
lost, and where it cannot A only copies (the ridge draws it to the choice itself). Weight and bias of each norm are
fitted likewise, channel by channel; those of the norm before the vocabulary so that logits stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill_engine.families.lookup import shape_of
from distill_engine.families.shape import Axis
from distill_engine.student.importance import Choice, choose
from distill_engine.student.least_squares import LinearFit, LogitsFit, NormFit
from distill_engine.student.watched import Linear, Watched, normalised, parent
from distill_engine.values import Batch, Stack

Affine = tuple[Tensor, Tensor | None]


@torch.no_grad()
def narrow(
    student: PreTrainedModel, watched: Watched, batches: Sequence[Batch], maps: Mapping[Stack, Sequence[int]]
) -> Choice:
    """Give a student, on the CPU, the values that come out of its teacher; returns what it keeps.

    maps  teacher layer of each student layer
    """
    return _Narrowing(student, watched, batches, maps).done()


class _Narrowing:
    def __init__(
        self, student: PreTrainedModel, watched: Watched, batches: Sequence[Batch], maps: Mapping[Stack, Sequence[int]]
    ) -> None:
        self._student, self._watched, self._batches, family = student, watched, batches, watched.family
        self._teacher, self._own = shape_of(watched.model.config), shape_of(student.config)
        names = [name for name in student.state_dict() if name not in student.all_tied_weights_keys]
        self._sources = {name: family.teacher_name(name, maps) for name in names}
        self._used = {parent(name) for name in self._sources.values()} & watched.linears.keys()
        self._choice = choose(watched, batches, self._used, self._teacher, self._own)

    def done(self) -> Choice:
        norms = self._norms()
        lifts = self._lifts(norms)
        state, stored = self._student.state_dict(), self._watched.model.state_dict()
        tables = self._token_tables()
        computed = {self._watched.family.position_table(stack) for stack in Stack if self._own.computes(stack)}
        for name, source in self._sources.items():
            if name in computed:
                continue
            module, target, value = parent(source), state[name], stored[source]
            if module in norms:
                weight, bias = norms[module]
                value = weight if source.endswith(".weight") else bias
            elif module in self._used:
                value = self._mapped(module, source, value, stored, lifts)
            elif parent(module) in self._choice.heads:
                value = self._choice.kept(value.mT, parent(module), Axis.HEAD).mT  # a table of position biases
            elif value.shape != target.shape:
                value = value[: target.shape[0], self._choice.channels] * tables.get(name, 1.0)
            target.copy_(value)
        return self._choice

    # ---- norms -------------------------------------------------------------------------------------------------------

    def _norms(self) -> dict[str, Affine]:
        """Weight and bias of each norm of the teacher, as it stands over the channels that are kept."""
        if self._own.width == self._teacher.width:
            return {}
        watched, kept = self._watched, self._choice.channels
        fits: dict[str, NormFit] = {}
        logits, before_logits = LogitsFit(), None
        for seen in watched.look(self._batches, norms=watched.norms):
            for norm in seen.norms:
                read = normalised(watched.norms[norm.name], norm.read[:, kept])
                fits.setdefault(norm.name, NormFit()).add(read, norm.given[:, kept])
            for given, last in seen.last:
                if last is not None:
                    before_logits = last.name
                    logits.add(normalised(watched.norms[last.name], last.read[:, kept]), given)
        found = {}
        for name, fit in fits.items():
            weight, bias = watched.norms[name].weight, getattr(watched.norms[name], "bias", None)
            found[name] = fit.solved(weight[kept], None if bias is None else bias[kept])
        if before_logits is not None:
            own, whole, scale = self._vocabularies()
            weight, bias = found[before_logits]
            start = weight * scale, None if bias is None else bias * scale
            found[before_logits] = logits.solved(*start, own, whole)
        return found

    def _vocabularies(self) -> tuple[Tensor, Tensor, float]:
        """The output table that the student will have, and the teacher's, each times the scale of decoder outputs; and
        the factor of the student's outputs that makes up for these scales."""
        parts, own = self._watched.parts, self._watched.family.parts(self._student)
        table = parts.head.get_parameter("weight")
        ratio = self._token_tables().get(self._source_of(own.head), 1.0)
        scale = ratio * own.scale
        return table[:, self._choice.channels] * scale, table * parts.scale, parts.scale / scale

    def _token_tables(self) -> dict[str, float]:
        """The student's tables that are read as embeddings -> teacher's scale / own scale: embeddings stay what they
        are where the scale goes with the width."""
        own, teacher = (self._watched.family.parts(self._student), self._watched.parts)
        return {
            self._source_of(parts.embedding): (whole.scale * whole.outer_scale) / (parts.scale * parts.outer_scale)
            for parts, whole in ((own.stacks[stack], teacher.stacks[stack]) for stack in Stack)
        }

    def _source_of(self, module: torch.nn.Module) -> str:
        """The name under which a module's weight is stored."""
        (name,) = (name for name, one in self._student.named_modules(remove_duplicate=False) if one is module)
        return self._student.all_tied_weights_keys.get(f"{name}.weight", f"{name}.weight")

    # ---- linear maps -------------------------------------------------------------------------------------------------

    def _lifts(self, norms: Mapping[str, Affine]) -> dict[str, tuple[Tensor, Tensor]]:
        """Linear map -> A and c of what it reads; none where all of that is kept."""
        fits: dict[str, LinearFit] = {}
        place: dict[str, str] = {}  # linear map -> where its fit is: maps that read one norm have one
        narrowed = {name for name in self._used if self._is_narrowed(name)}
        for seen in self._watched.look(self._batches, narrowed, self._watched.norms):
            fed = set()
            for one in seen.linears:
                place[one.name] = one.name if one.norm is None else one.norm.name
                if place[one.name] in fed:
                    continue
                fed.add(place[one.name])
                fit = fits.get(place[one.name]) or fits.setdefault(place[one.name], self._fit(one))
                fit.add(one.read, self._held(one, norms))
        solved = {name: fit.solved() for name, fit in fits.items()}
        return {name: solved[at] for name, at in place.items()}

    def _is_narrowed(self, name: str) -> bool:
        stack, axis = self._watched.stack(name), self._watched.axes(name)[1]
        teacher, own = self._teacher, self._own
        if axis is Axis.WIDTH:
            return own.width < teacher.width
        if axis is Axis.NEURON:
            return own.ffn_of(stack) < teacher.ffn_of(stack)
        return own.inner_of(stack) < teacher.inner_of(stack)

    def _fit(self, linear: Linear) -> LinearFit:
        part, axis, module = parent(linear.name), self._watched.axes(linear.name)[1], self._watched.linears[linear.name]
        every = torch.eye(module.in_features, dtype=torch.float64, device=module.weight.device)
        rows = self._choice.kept(every, part, axis)
        mixed = (part, axis) in self._choice.inside
        # undone: a mere choice by its transpose, which a decomposition would take minutes for in wide layers
        return LinearFit(torch.linalg.pinv(rows) if mixed else rows.mT, constant=module.bias is not None)

    def _held(self, linear: Linear, norms: Mapping[str, Affine]) -> Tensor:
        """[N, k]: the part of what a linear map reads that the student has."""
        axis = self._watched.axes(linear.name)[1]
        if axis is Axis.WIDTH and linear.norm is not None:
            norm, (weight, bias) = linear.norm, norms[linear.norm.name]
            read = normalised(self._watched.norms[norm.name], norm.read[:, self._choice.channels]) * weight
            return read if bias is None else read + bias
        return self._choice.kept(linear.read.mT, parent(linear.name), axis).mT

    def _mapped(
        self,
        module: str,
        source: str,
        value: Tensor,
        stored: Mapping[str, Tensor],
        lifts: Mapping[str, tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Weight or bias of a linear map in the student."""
        rows, value = self._watched.axes(module)[0], value.double()
        if module in lifts:
            lift, constant = lifts[module]
            value = (
                value @ lift if source.endswith(".weight") else value + stored[f"{module}.weight"].double() @ constant
            )
        return self._choice.kept(value, parent(module), rows)
