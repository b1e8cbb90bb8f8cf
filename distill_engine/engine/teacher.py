"""The teacher: inference only, frozen, its weights where the recipe's teacher.placement wants them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill_engine.engine.config import Placement
from distill_engine.engine.distributed import Ranks
from distill_engine.engine.overflow import searched
from distill_engine.engine.teacher_weights import TeacherError, load_teacher
from distill_engine.values import Batch, FeatureRequest, Features

logger = logging.getLogger(__name__)

# Of two ranks' mean predictions for one text, as total variation. fp16 on other hardware moves them by thousandths.
_LARGEST_DISTANCE = 0.02


class TeacherEngine:
    """Gives the features of a frozen model.

    zero3    shards over all ranks, gathered layer by layer in each pass
    node     the same over the ranks of each node: no byte of the teacher crosses the network
    replica  a copy on every rank: no communication, and no engine around it
    offload  as zero3, and the shards wait in host memory

    Where the weights are shards every forward pass is a chain of all-gathers: all ranks must call `features` equally
    often.
    """

    def __init__(
        self,
        folder: Path,
        ds_config: Mapping[str, Any],
        dtype: torch.dtype,
        ranks: Ranks,
        adapt: Callable[[PreTrainedModel], nn.Module],
        placement: Placement = "zero3",
        *,
        keeps_head: bool = True,
    ) -> None:
        """Load from a local folder; `adapt` wraps the model into what gives features (models.adapter), `ds_config` is
        engine.ds_config.teacher_config's for the same placement. Without `keeps_head` requests cannot ask for `head`,
        and no copy of the output embedding is kept.

        Raises TeacherError if anything is missing or not where it should be, LaunchError if nodes cannot be told apart.
        """
        model = load_teacher(folder, ds_config, dtype, ranks, placement)
        model.requires_grad_(False).eval()
        self._module: Any = adapt(model).eval()
        self._engine: Any = self._module
        self._is_sharded = placement != "replica"
        if self._is_sharded:
            self._engine, *_ = deepspeed.initialize(model=self._module, config=dict(ds_config))
            self._engine.eval()
        self._embedding = self._output_embedding() if self._is_sharded and keeps_head else None
        self._folder, self._ranks = folder, ranks
        self.config = model.config

    @property
    def model(self) -> PreTrainedModel:
        """The teacher itself, to generate with. Collective like `features`: all ranks must call it equally often."""
        model: PreTrainedModel = self._module.model
        return model

    def features(self, batch: Batch, request: FeatureRequest) -> Features:
        """What was asked, without gradients. Raises TeacherError if the logits are not finite numbers."""
        # no_grad, not inference_mode: losses save these tensors for the student's backward pass
        with torch.no_grad():
            features: Features = self._engine(batch, request)
            if features.head is None or not self._is_sharded:
                return features
            if self._embedding is None:
                raise TeacherError("the teacher was asked for its head, and was made without (keeps_head).")
            return replace(features, head=replace(features.head, embedding=self._embedding))

    def overflow(self, batch: Batch) -> str:
        """The first layer whose output is not finite, or cut, in one more pass; else empty. Collective, too."""
        return searched(self._module, batch, self.features)

    def share_encoder(self, student: PreTrainedModel) -> None:
        """Let a whole teacher's encoder be the student's, which is frozen: one copy in memory. Shards stay where they
        are; they are gathered where the teacher generates, and in no pass for features.

        Raises TeacherError if the student's is another.
        """
        if self._is_sharded:
            return
        theirs = dict(student.get_encoder().named_parameters())
        for name, own in self.model.get_encoder().named_parameters():
            if not torch.equal(own, theirs[name]):
                raise TeacherError(f"the student's encoder is not the teacher's, which it is to share: {name} differs.")
            own.data = theirs[name].data

    def _output_embedding(self) -> Tensor:
        """[V, D], whole. The sharded one is gone when a pass is over; a copy is as true: the teacher is frozen.

        Collective. Before the first pass: later on DeepSpeed may be fetching the weight for a pass to come.
        """
        weight = self._module.model.get_output_embeddings().weight
        with torch.no_grad(), deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()

    def probe(self, batch: Batch) -> Tensor:
        """Logits of a batch that is the same on all ranks, checked to be finite and of one teacher. Collective.

        In fp16 a layer that overflows without consequence for the logits (transformers cuts some) is warned of.
        Raises TeacherError for logits that are not finite, with the layer where it began, and for nodes that have
        different files under one path.
        """
        logits = self.features(batch, FeatureRequest()).logits
        assert logits is not None
        finite = all(self._ranks.gather(bool(torch.isfinite(logits).all())))
        if not finite or logits.dtype == torch.float16:
            self._look_into_layers(batch, finite, logits.dtype)
        self._require_one_teacher(torch.softmax(logits[0].float(), dim=-1).mean(dim=0).cpu())
        return logits

    def _look_into_layers(self, batch: Batch, finite: bool, dtype: torch.dtype) -> None:
        """Collective. Raises TeacherError where the logits are not finite."""
        where = self.overflow(batch)
        remedy = "Use a bf16 DeepSpeed config (ds_configs/zero2_bf16.json): its numbers reach as far as 32 bits do."
        if not finite:
            if dtype != torch.float16:
                remedy = (
                    "Its weights are damaged (NaN or inf in its files), or it has diverged: use another copy of it."
                )
            began = f": {where}" if where else " on another rank"
            raise TeacherError(f"the teacher's logits are not finite in {dtype} on a probe batch{began}. {remedy}")
        if where and self._ranks.rank == 0:
            logger.warning("The teacher does not fit %s: %s. What the student learns from it is wrong there. %s",
                           dtype, where, remedy)  # fmt: skip

    def _require_one_teacher(self, predicted: Tensor) -> None:
        """`predicted` [V]: this rank's mean prediction. Rounding moves it far less than another training step does."""
        distance = float((predicted - self._ranks.broadcast(predicted)).abs().sum()) / 2  # total variation
        apart = [rank for rank, one in enumerate(self._ranks.gather(distance)) if one > _LARGEST_DISTANCE]
        if apart:
            raise TeacherError(
                f"rank {apart[0]} and {len(apart) - 1} others have another teacher than rank 0: its predictions differ "
                f"on the same text. teacher.path {self._folder} holds different files on different nodes. Copy the "
                "same ones to all nodes, or use a path that they share."
            )
