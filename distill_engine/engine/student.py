"""The student's training engine: ZeRO-2, gradients summed, one backward per micro-batch.

DeepSpeed averages twice by default, over accumulation and over ranks. The objective already divides by global
counts, so both are switched off, in this file only: `backward(..., scale_wrt_gas=False)` here, and
`gradient_allreduce_op: sum`, which `engine.ds_config` puts into every student configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn

from distill_engine.engine.advice import advice
from distill_engine.engine.config import OptimizerSection
from distill_engine.engine.gradient_norm import read_once
from distill_engine.engine.host_copy import host_copy
from distill_engine.engine.overflow import searched
from distill_engine.engine.shards import SavedShards, divided_anew, layouts_of
from distill_engine.values import Batch, FeatureRequest, Features

_TAG = "engine"

# The only classes, besides tensors and containers, that DeepSpeed's shards may hold: a checkpoint that names any
# other is refused before it is unpickled.
CHECKPOINT_CLASSES = (DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address)


class StudentEngineError(RuntimeError):
    """The student's engine is not what the run needs."""


def torch_optimizer(module: nn.Module, asked: OptimizerSection) -> torch.optim.Optimizer:
    """The optimizer of a recipe. DeepSpeed's own would be compiled on first use; torch's fused one is as fast."""
    groups = _parameter_groups(module, asked.weight_decay)
    if asked.name == "sgd":
        return torch.optim.SGD(groups, lr=asked.learning_rate, momentum=asked.momentum)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[asked.name]
    return kind(groups, lr=asked.learning_rate, betas=asked.betas, eps=asked.eps, amsgrad=asked.amsgrad, fused=True)


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters; with weight decay, biases and norms (vectors) form a group that is not decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if weight_decay == 0:
        return [{"params": trained, "weight_decay": 0.0}]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step did.

    applied    False if the step was skipped (fp16 overflow, or a gradient that is not finite)
    grad_norm  global norm before clipping, None if skipped
    loss_scale factor of the loss in the backward pass, 1.0 without fp16
    """

    applied: bool
    grad_norm: float | None
    loss_scale: float


class StudentEngine:
    """Trains {student, projections}. Also a checkpoint part: `save` and `load` are collective."""

    def __init__(self, module: nn.Module, ds_config: Mapping[str, Any], optimizer: OptimizerSection) -> None:
        """Raises StudentEngineError if the student was sharded by mistake or DeepSpeed chose another ZeRO stage."""
        sharded = [name for name, p in module.named_parameters() if hasattr(p, "ds_id")]
        if sharded:
            raise StudentEngineError(
                f"{len(sharded)} student parameters are sharded (first: {sharded[0]}): the teacher's ZeRO-3 "
                "configuration leaked into the student."
            )
        engine, self._optimizer, *_ = deepspeed.initialize(
            model=module, optimizer=torch_optimizer(module, optimizer), config=dict(ds_config)
        )
        asked = ds_config["zero_optimization"]["stage"]
        if engine.zero_optimization_stage() != asked:
            raise StudentEngineError(
                f"the student runs under ZeRO stage {engine.zero_optimization_stage()}, the configuration asks {asked}."
            )
        read_once(self._optimizer)
        self._engine = engine
        # DeepSpeed leaves them in 32 bits, where from_pretrained has them as the weights are: a position table would
        # make hidden states 32 bits wide, and a logits bias would come back from an export as another number
        for buffer in engine.module.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(self.dtype)
        self._moments = optimizer.moments
        self._accumulation_steps = engine.gradient_accumulation_steps()
        self._micro_step = 0

    @property
    def module(self) -> Any:
        """The module that is trained (engine wrapping taken off)."""
        return self._engine.module

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights in forward and backward passes."""
        return next(self.module.parameters()).dtype

    def train(self) -> None:
        """Dropout on."""
        self._engine.train()

    def eval(self) -> None:
        """Dropout off."""
        self._engine.eval()

    def quantize(self, on: bool) -> None:
        """Whether passes from now on are int8's."""
        self.module.quantize(on)

    def features(self, batch: Batch, request: FeatureRequest) -> Features:
        """One forward pass, projected to the teacher's width."""
        features, _ = self._engine(batch, request)
        return features

    def overflow(self, batch: Batch) -> str:
        """The first layer whose output is not finite, or cut, in one more pass without dropout; else empty."""
        return searched(self.module.adapter, batch)

    def encoded(self, batch: Batch) -> Batch:
        """A batch with its encoder's output, which the teacher's decoder reads, too: a frozen one is not run again."""
        encoded: Batch = self.module.adapter.encoded(batch)
        return encoded

    def backward(self, total: Tensor) -> None:
        """Backward of one micro-batch's share of the global loss.

        Called exactly once per micro-batch: under ZeRO-2 a second backward of the same micro-batch would silently
        throw away the first one's gradients.
        """
        if self._micro_step >= self._accumulation_steps:
            raise StudentEngineError("backward was called again before step: one backward per micro-batch.")
        self._engine.backward(total, scale_wrt_gas=False)
        self._micro_step += 1
        if self._micro_step < self._accumulation_steps:
            self._engine.step()  # counts the micro-batch; nothing is updated before the last one

    def step(self, learning_rate: float) -> StepOutcome:
        """Clip, update (or skip) and clear the gradients of all micro-batches since the last step."""
        if self._micro_step != self._accumulation_steps:
            raise StudentEngineError(
                f"step after {self._micro_step} of {self._accumulation_steps} micro-batches of the optimizer step."
            )
        self._micro_step = 0
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        loss_scale = self.loss_scale
        self._update()
        applied = bool(self._engine.was_step_applied())
        norm = self._engine.get_global_grad_norm() if applied else None
        return StepOutcome(applied, None if norm is None else float(norm), loss_scale)

    def _update(self) -> None:
        try:
            self._engine.step()
        except Exception as error:  # DeepSpeed raises nothing narrower; all ranks get here together
            if "loss scale already at minimum" not in str(error):
                raise
            raise StudentEngineError(
                f"the gradients overflow fp16 even at a loss scale of {self.loss_scale:g}, the smallest that the "
                f"DeepSpeed config allows (fp16.min_loss_scale). {self.advice()}"
            ) from error

    def advice(self) -> str:
        """What to do about gradients that are not finite. Waits for the device."""
        bad = [name for name, p in self.module.named_parameters() if not bool(torch.isfinite(p).all())]
        return advice(str(self.dtype).removeprefix("torch."), [name.removeprefix("adapter.model.") for name in bad])

    @property
    def loss_scale(self) -> float:
        """Current factor of the fp16 loss scaler; 1.0 without fp16."""
        # not engine.loss_scale(): that is the configuration's, 0 where the scale is dynamic
        return float(self._optimizer.loss_scale)

    def parameter_count(self) -> int:
        """Elements of the exported student (projections not counted, tied tensors once)."""
        return sum(p.numel() for p in self.module.model.parameters())

    def checkpoint_bytes(self) -> int:
        """Bytes of what `save` writes, all ranks' files together, but for a few KiB of each: the weights as they are,
        and for each that is trained its 32-bit copy and the optimizer's moments."""
        state = self.module.state_dict().values()
        weights = {(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in state}
        trained = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        return sum(weights.values()) + 4 * trained * (1 + self._moments)

    def export_bytes(self) -> int:
        """Bytes of the exported student's weights."""
        return sum(p.numel() * p.element_size() for p in self.module.model.parameters())

    # ---- checkpoint part ------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write this rank's shard and, on rank 0, the module. Collective: a rank whose disk is full still takes
        part in every barrier and raises OSError afterwards."""
        self._save(folder, self._engine.checkpoint_engine.save)

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """Copy this rank's shard and, on rank 0, the module into host memory; the action writes them. Collective, as
        `save`; needs as much host memory as the files take."""
        write = self._engine.checkpoint_engine.save
        taken: list[tuple[Any, str]] = []
        self._save(folder, lambda state_dict, path: taken.append((host_copy(state_dict), path)))

        def write_all() -> None:
            while taken:  # each copy is let go as soon as it is on its way to the disk
                write(*taken.pop())

        return write_all

    def _save(self, folder: Path, write: Callable[..., Any]) -> None:
        """`write` gets what DeepSpeed would write to a path."""
        if self._micro_step != 0:
            raise StudentEngineError("checkpoints are taken between optimizer steps only.")
        with _deferred_errors(self._engine.checkpoint_engine, write) as errors:
            self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
            if dist.get_rank() == 0:  # not by DeepSpeed, which would raise before a barrier: zero_to_fp32.py looks here
                _collected(errors, lambda: (folder / "latest").write_text(_TAG, encoding="ascii"))
        if errors:
            raise OSError(f"{folder}: {errors[0]}") from errors[0]

    def load(self, folder: Path) -> None:
        """Restore weights, optimizer state and loss scale.

        Shards of another number of ranks, or laid out otherwise (round_robin_gradients), are divided anew: DeepSpeed
        refuses the first and would take up the second wrongly, in silence. Raises StudentEngineError if DeepSpeed
        loads nothing, ShardError if the shards do not fit.
        """
        saved = SavedShards(folder / _TAG, CHECKPOINT_CLASSES)
        if saved.ranks == dist.get_world_size() and saved.layouts(self._optimizer) == layouts_of(self._optimizer):
            path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG, load_lr_scheduler_states=False)
            if path is None:
                raise StudentEngineError(f"{folder}: DeepSpeed found no checkpoint there.")
        else:
            self._load_divided_anew(saved)
        self._micro_step = 0

    def _load_divided_anew(self, saved: SavedShards) -> None:
        """What load_checkpoint does, with this rank's share of all shards. No communication."""
        rank, ranks = dist.get_rank(), dist.get_world_size()
        model = saved.model()
        self._engine.load_module_state_dict(model)
        for counter in ("global_steps", "global_samples", "skipped_steps"):
            setattr(self._engine, counter, model[counter])
        shares: list[Any] = [None] * ranks
        shares[rank] = divided_anew(saved, self._optimizer, rank, ranks)
        self._optimizer.load_state_dict(shares, load_optimizer_states=True, load_from_fp32_weights=True)
        groups = zip(
            self._optimizer.single_partition_of_fp32_groups,
            self._optimizer.parallel_partitioned_bit16_groups,
            strict=True,
        )
        for number, (exact, parts) in enumerate(groups):
            # the module's weights are the rounded fp32 ones: any mistake in the order of elements shows here
            if not torch.allclose(exact.to(parts[rank]), parts[rank], rtol=0.0, atol=0.0, equal_nan=True):
                raise StudentEngineError(
                    f"optimizer group {number}: the fp32 weights in the shards are not those of the saved student."
                )


def _collected(errors: list[Exception], write: Callable[[], Any]) -> Any:
    try:
        return write()
    except (OSError, RuntimeError) as error:
        errors.append(error)
        return None


@contextmanager
def _deferred_errors(checkpoint_engine: Any, write: Callable[..., Any]) -> Iterator[list[Exception]]:
    """Let DeepSpeed write by `write`, and collect its errors instead of raising them inside its collective save, where
    the other ranks would wait for this one until the time-out."""
    errors: list[Exception] = []
    own = checkpoint_engine.save

    checkpoint_engine.save = lambda *args, **kwargs: _collected(errors, lambda: write(*args, **kwargs))
    try:
        yield errors
    finally:
        checkpoint_engine.save = own
