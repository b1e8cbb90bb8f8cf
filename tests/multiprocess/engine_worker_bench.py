"""What the checks stand on: real engines over tiny models, built as the program builds them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_models as tiny
import torch
from torch import Tensor, nn

from distill_engine.engine.config import OptimizerSection, Placement
from distill_engine.engine.distributed import Ranks
from distill_engine.engine.ds_config import load_ds_config, student_config, teacher_config
from distill_engine.engine.student import StepOutcome, StudentEngine
from distill_engine.engine.teacher import TeacherEngine
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.values import Batch

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALL_BUCKETS = {"reduce_bucket_size": 5000, "allgather_bucket_size": 5000}  # so that there are several
SGD = OptimizerSection(name="sgd", learning_rate=1.0)
ADAM = OptimizerSection(name="adam", learning_rate=1e-3)


@dataclass
class Bench:
    """This rank, a folder that all ranks share, and the folder of the tiny teachers."""

    ranks: Ranks
    folder: Path
    teachers: Path
    _loaded: dict[tuple[str, str], TeacherEngine] = field(default_factory=dict)

    def teacher(self, family: str = "blenderbot", precision: str = "fp32") -> TeacherEngine:
        """The tiny teacher under ZeRO-3, loaded once; it keeps no parameter whole between two forward passes."""
        if (family, precision) not in self._loaded:
            self._loaded[family, precision] = self.load_teacher(self.teachers / family, precision)
        return self._loaded[family, precision]

    def load_teacher(
        self, folder: Path, precision: str = "fp32", placement: Placement = "zero3", ranks: Ranks | None = None
    ) -> TeacherEngine:
        config = self.teacher_ds(precision, placement)
        return TeacherEngine(folder, config, DTYPES[precision], ranks or self.ranks, adapt, placement)

    def teacher_ds(self, precision: str = "fp32", placement: Placement = "zero3") -> dict[str, Any]:
        """The shipped JSON; at its own threshold every tiny parameter would stay gathered."""
        base = load_ds_config(DS_CONFIGS / "teacher_zero3.json")
        base["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return teacher_config(base, dtype=precision, world_size=self.ranks.world_size, placement=placement)

    def student_ds(
        self, file: str = "zero2_fp32.json", *, accumulation: int = 1, clip: float | None = None, **blocks: Mapping
    ) -> dict[str, Any]:
        """A shipped JSON, made final as the program does; `blocks` are merged into its blocks."""
        base = load_ds_config(DS_CONFIGS / file)
        for name, values in {"zero_optimization": SMALL_BUCKETS, **blocks}.items():
            base[name] = {**base.get(name, {}), **values}
        final, _ = student_config(
            base,
            batch_per_rank=2,
            accumulation_steps=accumulation,
            world_size=self.ranks.world_size,
            clip_norm=clip,
            fp16_supported=True,
            bf16_supported=True,
        )
        return final

    def student(
        self,
        module: nn.Module,
        config: Mapping[str, Any] | None = None,
        optimizer: OptimizerSection = SGD,
        kind: type[StudentEngine] = StudentEngine,
    ) -> StudentEngine:
        """A student engine in training mode."""
        engine = kind(module, config or self.student_ds(), optimizer)
        engine.train()
        return engine

    def take_step(
        self,
        student: StudentEngine,
        teacher: Any,
        goal: Objective,
        group: Sequence[Batch],
        learning_rate: float = 0.1,
        factor: float = 1.0,
    ) -> tuple[float, StepOutcome]:
        """One optimizer step as the training loop does it, and the global loss.

        `factor` spoils this rank's first micro-batch.
        """
        divisors = goal.divisors(group, self.ranks.sum, self.ranks.world_size)
        total = torch.zeros(())
        for number, (batch, divisor) in enumerate(zip(group, divisors, strict=True)):
            teacher_features = teacher.features(batch, goal.teacher_request())
            student_features = student.features(batch, goal.student_request())
            share = goal.total(goal.terms(student_features, teacher_features, batch), divisor)
            total += share.detach()
            student.backward(share if number else share * factor)
        return float(self.ranks.sum(total)), student.step(learning_rate)


class PlainTeacher:
    """The teacher as from_pretrained gives it, for references."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModelForSeq2SeqLM

        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()
        self._adapter = adapt(self.model)

    @torch.no_grad()
    def features(self, batch: Batch, request: Any) -> Any:
        return self._adapter(batch, request)


def plain_loss(module: nn.Module, teacher: Any, goal: Objective, batch: Batch) -> Tensor:
    """The objective's loss of one batch that is all there is: no ranks, no accumulation, no engine."""
    divisor = goal.divisors([batch], lambda tensor: tensor, 1)[0]
    features, _ = module(batch, goal.student_request())
    return goal.total(goal.terms(features, teacher.features(batch, goal.teacher_request()), batch), divisor)


def plain_steps(module: nn.Module, losses: Sequence[Any], learning_rate: float) -> tuple[list[float], list[Tensor]]:
    """Plain PyTorch SGD over losses (functions of the module): their values, and the first gradient as one vector."""
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=learning_rate)
    values, gradients = [], []
    for loss in losses:
        optimizer.zero_grad()
        value = loss(module)
        value.backward()
        values.append(value.item())
        gradients.append(flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in trained(module)]))
        optimizer.step()
    return values, gradients


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements in one vector, a copy."""
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors]).clone()


def weights(module: nn.Module) -> Tensor:
    """All trained parameters in one vector."""
    return flat(trained(module))


def digest(module: nn.Module) -> str:
    """Of every parameter's bytes."""
    content = hashlib.sha256()
    for parameter in module.parameters():
        content.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def rank_groups(seed: int, ranks: Ranks, micro_batches: int, steps: int) -> list[list[Batch]]:
    """[steps][micro_batches]: this rank's share, two examples each, of an order that is the same on all ranks."""
    return [
        [tiny.batch(part[ranks.rank :: ranks.world_size], "blenderbot") for part in step]
        for step in global_groups(seed, micro_batches, steps, 2 * ranks.world_size)
    ]


def global_groups(seed: int, micro_batches: int, steps: int, per_micro_batch: int, family: str = "blenderbot"):
    """[steps][micro_batches] lists of examples."""
    chosen = tiny.examples(steps * micro_batches * per_micro_batch, family, seed)
    parts = [chosen[i : i + per_micro_batch] for i in range(0, len(chosen), per_micro_batch)]
    return [parts[i : i + micro_batches] for i in range(0, len(parts), micro_batches)]
