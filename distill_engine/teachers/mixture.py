"""Several live teachers of one vocabulary: the mean of their probabilities, and the features of one of them.

With teachers k of logits z_k, weights w_k (which are made to add up to 1) and the temperature T of the losses, the
distribution that students are compared with is, position by position,

    p = sum_k w_k softmax(z_k / T)

in float32 and in log space, as an ensemble's soft targets are (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, the
arithmetic mean). What is handed out as logits is T log p: their softmax at T is p exactly. At T = 1 that is log p, and
what is measured at temperature 1 (`valid/teacher_ppl`) is the mixture's own; at another T it is of these logits.

One teacher's logits live beside the mixture at a time. There are no factors of such logits, so the losses work on whole
ones. Everything else - encoder output, embeddings, hidden states, attention - is of one teacher; sample replies are the
first one's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from distill_engine.teachers.protocol import Teacher
from distill_engine.values import Batch, FeatureRequest, Features

_LOGITS = FeatureRequest()


class Mixture(Teacher):
    """Asks each of its teachers, in their order, on all ranks alike."""

    provides = Teacher.provides - {"head"}

    def __init__(
        self, teachers: Sequence[Teacher], weights: Sequence[float], temperature: float, features_of: int = 0
    ) -> None:
        """At least one teacher, and as many positive weights; `temperature` of the losses; `features_of`: the number of
        the one that gives everything but logits."""
        self._teachers, self._features_of = teachers, features_of
        self._shares = [weight / sum(weights) for weight in weights]
        self._temperature = temperature
        self.engine = teachers[0].engine

    def features(self, group: Sequence[Batch], request: FeatureRequest) -> Iterator[Features]:
        """As the protocol says."""
        chosen = self._features_of
        if not request.logits:
            yield from self._teachers[chosen].features(group, request)
            return
        asked = [
            one.features(group, request if number == chosen else _LOGITS) for number, one in enumerate(self._teachers)
        ]
        for _ in group:
            rest, logs = Features(), None
            for number, one in enumerate(asked):
                seen = next(one)
                assert seen.logits is not None, "they were asked for"
                part = self._log(seen.logits, number)
                logs = part if logs is None else torch.logaddexp(logs, part)
                rest = replace(seen, logits=None) if number == chosen else rest
                del seen, part
            assert logs is not None, "at least one teacher"
            yield replace(rest, logits=logs if self._temperature == 1.0 else logs * self._temperature)
            del rest, logs

    def _log(self, logits: Tensor, number: int) -> Tensor:
        """[B, T, V] float32: one teacher's part of p, in log space."""
        tempered = logits.float() if self._temperature == 1.0 else logits.float() / self._temperature
        return torch.log_softmax(tempered, dim=-1) + math.log(self._shares[number])
