"""Linear maps from student width to teacher width, in a module beside the student, never inside it.

Training needs {student, projections}; export receives `student`, so "remove the projections" is not a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill_engine.models.fake_int8 import Switch
from distill_engine.student.least_squares import LinearFit
from distill_engine.values import Batch, FeatureRequest, Features, Projected, Stack


class Projections(nn.Module):
    """One map per requested feature: encoder output, embedding of each stack, every layer's hidden states.

    Initialised as in ParlAI: weights normal(0, 0.02), biases 0. Only what the request asks for exists, so no
    parameter is ever unused.
    """

    def __init__(self, request: FeatureRequest, student_width: int, teacher_width: int, seed: int) -> None:
        super().__init__()

        def linear() -> nn.Linear:
            layer = nn.Linear(student_width, teacher_width)
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
            return layer

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder_output = linear() if request.encoder_output else None
            self.embedding = nn.ModuleDict({stack.value: linear() for stack in Stack if stack in request.embeddings})
            self.hidden = nn.ModuleDict(
                {
                    stack.value: nn.ModuleDict({str(n): linear() for n in request.hidden[stack]})
                    for stack in Stack
                    if stack in request.hidden
                }
            )

    @torch.no_grad()
    def fit(
        self,
        pairs: Iterable[tuple[Batch, Features, Features]],
        supervision: Mapping[Stack, Sequence[int]],
        channels: Tensor,
    ) -> None:
        """Begin as what makes the teacher's features out of a student's, by least squares over (batch, student's,
        teacher's); drawn to the choice undone, which puts each channel where the teacher had it.

        supervision  teacher layer of each student layer       channels [Ds]  the teacher's that the student keeps
        """
        fits: dict[nn.Linear, LinearFit] = {}

        def add(layer: Any, own: Any, teacher: Any, mask: Tensor) -> None:
            if layer not in fits:
                undone = torch.zeros(layer.weight.shape)
                undone[channels.cpu(), torch.arange(len(channels))] = 1
                fits[layer] = LinearFit(undone, constant=True)
            fits[layer].add(teacher[mask].cpu(), own[mask].cpu())

        for batch, own, teacher in pairs:
            if self.encoder_output is not None:
                add(self.encoder_output, own.encoder_output, teacher.encoder_output, batch.context_mask)
            for stack, states in own.embeddings.items():
                add(self.embedding[stack.value], states, teacher.embeddings[stack], batch.mask_of(stack))
            for (stack, n), states in own.hidden.items():
                right = teacher.hidden[stack, supervision[stack][n]]
                add(self._hidden(stack, n), states, right, batch.mask_of(stack))
        for layer, fit in fits.items():
            weight, bias = fit.solved()
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)

    def forward(self, features: Features) -> Features:
        """The same features with encoder output, embeddings and hidden states on their way to the teacher's width."""
        output = features.encoder_output
        if output is not None and self.encoder_output is not None:
            output = _projected(self.encoder_output, output)
        return replace(
            features,
            encoder_output=output,
            embeddings={stack: _projected(self.embedding[stack.value], x) for stack, x in features.embeddings.items()},
            hidden={(stack, n): _projected(self._hidden(stack, n), x) for (stack, n), x in features.hidden.items()},
        )

    def _hidden(self, stack: Stack, layer: int) -> nn.Module:
        maps = self.hidden[stack.value]
        assert isinstance(maps, nn.ModuleDict)
        return maps[str(layer)]


def _projected(layer: Any, states: Any) -> Projected:
    return Projected(states, layer.weight, layer.bias)


class StudentModule(nn.Module):
    """What the engine trains: the adapted student and its projections (None where widths agree)."""

    def __init__(self, adapter: nn.Module, projections: Projections | None, int8: Switch | None = None) -> None:
        """`int8`: of a student whose layers can be rounded."""
        super().__init__()
        self._int8 = int8
        self.adapter = adapter
        self.projections = projections

    @property
    def model(self) -> PreTrainedModel:
        """The Hugging Face student alone, as it is exported."""
        return self.adapter.model  # type: ignore[return-value]

    def quantize(self, on: bool) -> None:
        """Whether its passes from now on are int8's, of a student that was made for it."""
        assert self._int8 is not None
        self._int8.on = on

    def forward(self, batch: Batch, request: FeatureRequest) -> tuple[Features, list[Tensor]]:
        """Features at the teacher's width, and every tensor in them as a flat list (DeepSpeed hooks outputs it can
        see: tensors in tuples, lists and dicts, not dataclasses).

        Raises RuntimeError if gradients are on and a feature cannot carry them (reentrant checkpointing does that).
        """
        features = self.adapter(batch, request)
        if self.projections is not None:
            features = self.projections(features)
        tensors = feature_tensors(features)
        if self.training and torch.is_grad_enabled() and not all(t.requires_grad for t in tensors):
            raise RuntimeError(
                "a captured student feature carries no gradient: activation checkpointing must be non-reentrant "
                "(use_reentrant=False), and no requested layer may be frozen."
            )
        return features, tensors


def feature_tensors(features: Features) -> list[Tensor]:
    """Every tensor that the model made, in a fixed order (of products that are not formed, the states)."""
    head = None if features.head is None else features.head.hidden
    tensors = (features.logits, head, features.encoder_output, *features.embeddings.values(), *features.hidden.values())
    single = [t.states if isinstance(t, Projected) else t for t in tensors if t is not None]
    scores = (t for qk in features.attention.values() for t in (qk.query, qk.key, qk.bias) if t is not None)
    return [*single, *scores]
