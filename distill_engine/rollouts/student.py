"""The student's own text: on-policy distillation.

With probability `share` (lambda) a micro-batch of the data keeps its contexts and gets labels that the student samples
now; the teacher says how good each of their tokens is, and no gradient goes through the sampling: algorithm 1 of
R. Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes" (GKD, ICLR 2024,
arXiv:2306.13649), whose lambda is `share` and whose divergence is losses.divergence. There the samples are compared by
the divergence alone; here by every term that compares with a teacher.

Which micro-batches are sampled, and what is drawn in them, follows from the seed and the position: the optimizer step,
and the micro-batch among those of all ranks. All ranks sample the same micro-batches of a step, so that none waits
while another one generates. Nothing is collective: each rank has the whole student (ZeRO-2 shards no weights).

Samples come from the softmax at `temperature`, cut by `top_p`, of what the student can say at all: not the padding
token nor one that is never predicted in training; beams, n-gram rules and least lengths of its generation settings have
no part in it. They begin as labels do in training and end with the first end token or at the limit: data.label_tokens
at most, for which the position tables were checked; with batch.max_tokens also what the budget leaves, or gold's
length where that is longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from distill_engine.data.order.collate import rounded_up
from distill_engine.data.order.shuffle import key_of
from distill_engine.rollouts.protocol import Rollout, RolloutParts
from distill_engine.teachers.protocol import Teacher
from distill_engine.values import IGNORED_LABEL, Batch


class StudentSamples:
    """Replaces labels of a share of the micro-batches. Its state is the number of steps so far, skipped ones too."""

    def __init__(self, parts: RolloutParts) -> None:
        self._parts = parts
        self._steps = 0

    def batches(self, group: Sequence[Batch], teacher: Teacher | None, student: Any) -> Sequence[Batch]:  # noqa: ARG002
        """The same contexts; the student's mode and all random streams are as before."""
        step, self._steps = self._steps, self._steps + 1
        chosen = [self._is_sampled(step, number) for number in range(len(group))]
        if not any(chosen):
            return group
        student.eval()  # no dropout
        try:
            return [
                self._sampled(batch, student.module.model, step, number) if own else batch
                for number, (batch, own) in enumerate(zip(group, chosen, strict=True))
            ]
        finally:
            student.train()

    def _is_sampled(self, step: int, number: int) -> bool:
        """The same on all ranks."""
        return int(key_of(self._parts.seed, "sampled", step, number)) < self._parts.section.share * 2**64

    def _sampled(self, batch: Batch, model: Any, step: int, number: int) -> Batch:
        parts, place = self._parts, number * self._parts.world_size + self._parts.rank
        # 32 bits that both change: torch's CPU generator reads no higher ones
        seed = int(key_of(parts.seed, "samples", step, place)) & 0xFFFF_FFFF
        devices = [batch.labels.device] if batch.labels.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            ids = self._generated(batch, model)
        return relabelled(batch, ids, parts)

    @torch.no_grad()
    def _generated(self, batch: Batch, model: Any) -> Tensor:
        """[B, N] int64 sampled ids, right-padded with anything."""
        start = batch.decoder_input_ids[:, : len(self._parts.layout.decoder_prefix)]
        given = batch.inputs.keywords.items()
        inputs = {name: one.to(model.dtype) if one.is_floating_point() else one for name, one in given}
        with _settings(model, self._config(self._limit(batch))):
            # not model.generate, which speech models replace by one for long recordings
            ids = GenerationMixin.generate(model, **inputs, decoder_input_ids=start)
        assert isinstance(ids, Tensor)
        return ids[:, start.shape[1] :]

    def _config(self, limit: int) -> GenerationConfig:
        parts = self._parts
        return GenerationConfig(
            do_sample=True,
            temperature=parts.section.temperature,
            top_p=parts.section.top_p,
            top_k=0,
            max_new_tokens=limit,
            pad_token_id=parts.layout.pad_id,
            eos_token_id=list(parts.end_ids),
            decoder_start_token_id=parts.layout.decoder_prefix[0],
            forced_bos_token_id=parts.forced,
            suppress_tokens=list(parts.suppressed) or None,
            remove_invalid_values=True,  # of a student that has diverged: the step's loss says so, and skips it
        )

    def _limit(self, batch: Batch) -> int:
        parts = self._parts
        if parts.max_tokens is None:
            return parts.new_tokens
        multiple, extra = parts.pad_to_multiple_of, parts.layout.label_pad_prefix
        left = parts.max_tokens // len(batch) - batch.inputs.length - extra
        return min(parts.new_tokens, max(left // multiple * multiple, batch.labels.shape[1] - extra))

    def state_dict(self) -> dict[str, Any]:
        """Where it is: equal on all ranks."""
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._steps = int(state["steps"])


class Student:
    """rollout.source: student."""

    meaning: ClassVar[str] = "a share of micro-batches is the student's own samples, scored by the teacher (GKD)"

    def open(self, parts: RolloutParts) -> Rollout:
        """At its first step."""
        return StudentSamples(parts)


STUDENT = Student()


def relabelled(batch: Batch, ids: Tensor, parts: RolloutParts) -> Batch:
    """The batch with other labels: each row's ids [B, N] up to its first end token, laid out as `collate` does."""
    layout, places = parts.layout, torch.arange(ids.shape[1], device=ids.device)
    ended = torch.isin(ids, ids.new_tensor(parts.end_ids))
    lengths = torch.where(ended.any(dim=1), ended.int().argmax(dim=1) + 1, ids.shape[1])
    counted = places < lengths[:, None]  # [B, N]
    longest = int(lengths.max())
    length = max(longest, min(rounded_up(longest, parts.pad_to_multiple_of), parts.new_tokens))
    labels = ids.new_full((len(ids), layout.decoder_length(length)), IGNORED_LABEL)
    labels[:, layout.label_pad_prefix :][:, :longest] = torch.where(counted, ids, IGNORED_LABEL)[:, :longest]
    read = torch.full_like(labels, layout.pad_id)
    first = len(layout.decoder_prefix)
    read[:, :first] = batch.decoder_input_ids[:, :first]
    read[:, first:][:, : longest - 1] = torch.where(counted[:, 1:], ids[:, :-1], layout.pad_id)[:, : longest - 1]
    return replace(batch, decoder_input_ids=read, labels=labels, sampled=True)


@contextmanager
def _settings(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Within it these settings alone hold: transformers completes what it is given by the model's own ones."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own
