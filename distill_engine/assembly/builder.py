"""Makes the parts of one training run from what was prepared; the recipe is unpacked here and nowhere below."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill_engine.arithmetic import products
from distill_engine.assembly.beside import loss_terms, policies_of, step_metrics, turns, validation
from distill_engine.assembly.narrowing import narrow_from_teacher
from distill_engine.assembly.overlap import ending_on_time, overlapped
from distill_engine.assembly.publishing import BestPublisher
from distill_engine.assembly.resizing import newest_step
from distill_engine.assembly.rollout import rollout_of
from distill_engine.assembly.student_module import by_stack, student_module
from distill_engine.assembly.teacher import teacher_of
from distill_engine.checkpoint.checkpoints import Checkpoints
from distill_engine.checkpoint.parts import Stateful
from distill_engine.checkpoint.retention import Retention
from distill_engine.checkpoint.space import Space
from distill_engine.data.order.split import BatchSplit
from distill_engine.engine.distributed import Ranks
from distill_engine.engine.ds_config import precision_of
from distill_engine.engine.student import CHECKPOINT_CLASSES, StudentEngine
from distill_engine.evaluate.measured_replies import MeasuredReplies, Replies, measures_replies
from distill_engine.evaluate.teacher_replies import sample_guard
from distill_engine.families.shape import Sizes
from distill_engine.losses.config import LossWeights
from distill_engine.losses.kernels.dispatch import Choice, Implementation, Kernels, choose
from distill_engine.losses.objective import Objective
from distill_engine.recipe.cache_rules import holds_head
from distill_engine.recipe.identity import recipe_digest
from distill_engine.recipe.overlap_rules import require_replica
from distill_engine.recipe.placement import placement_of
from distill_engine.recipe.quantize_rules import quantized_from
from distill_engine.rollouts.encoded import EncodedOnce
from distill_engine.setup.prepare import Prepared, fingerprints
from distill_engine.setup.space import check_space
from distill_engine.setup.training_data import train_loader
from distill_engine.student.layer_map import resolve_layer_map
from distill_engine.student.projections import StudentModule
from distill_engine.teachers.protocol import Teacher
from distill_engine.telemetry.sinks import SinkGroup
from distill_engine.telemetry.wandb_sink import StoredRunId
from distill_engine.train.balancing import LossTerms
from distill_engine.train.hooks import AtValidation, Hook, Hooks, Remembered, Supervision
from distill_engine.train.loop import Trainer
from distill_engine.train.stop_request import StopRequest
from distill_engine.values import Stack


class Builder:
    """Makes the parts of one run from what was prepared."""

    def __init__(
        self,
        ready: Prepared,
        folder: Path,
        ranks: Ranks,
        sinks: SinkGroup,
        split: BatchSplit,
        resize: bool = False,
        beat: Callable[[str], None] = lambda _doing: None,
        stop_request: StopRequest | None = None,
    ) -> None:
        """`split`: how the ranks share a step; `resize`: a checkpoint of another number of ranks may be taken up;
        `beat`: told what begins; `stop_request`: what a signal asks for."""
        self._stop_request = stop_request
        self._beat = beat
        self._split = split
        self._resize = resize
        self._ready = ready
        self._recipe = ready.recipe
        self._folder = folder
        self._ranks = ranks
        self._sinks = sinks

    def trainer(self, student_ds: dict[str, Any], teacher_ds: dict[str, Any]) -> Trainer:
        """Everything, wired together."""
        recipe, ranks = self._recipe, self._ranks
        require_replica(recipe, ranks.world_size, teacher_ds)
        objective = self._objective()
        if ranks.device.type == "cpu" and precision_of(student_ds) == "fp32":
            self._sinks.message(f"float32 products: {products.library()} (another processor's may differ in last bits)")
        # the student first: nothing of the teacher's sharding can leak into it
        self._beat("building the student")
        module = student_module(self._ready, objective, self._sinks.message)
        self._narrow(module, objective, teacher_ds)
        self._beat("sharding the student")
        student = StudentEngine(module, student_ds, self._recipe.optimizer)
        self._check_space(student)
        teacher = self._teacher(objective, student, teacher_ds, precision_of(student_ds))
        rollout = rollout_of(self._ready, ranks)
        self._seed_everything()  # after the teacher: dropout must not depend on how it was loaded
        loader = train_loader(self._ready, ranks, self._sinks.message, self._split)
        ahead, batches = overlapped(recipe, teacher, loader, ranks.device, self._sinks.message)
        self._beat("asking the teacher for sample replies and making the rest")
        self.publisher = BestPublisher(self._ready, student, self._folder, ranks, self._sinks.message)
        terms = loss_terms(recipe, objective, student, ranks)
        trainer = Trainer(
            student=student,
            teacher=ahead,
            objective=objective,
            batches=batches,
            rollout=EncodedOnce(rollout) if recipe.student.share_encoder else rollout,
            policies=replace(policies_of(recipe, validates=bool(self._ready.valid_datasets)), factors=terms.factors),
            checkpoints=Checkpoints(
                self._folder / "checkpoints",
                ranks,
                identity={
                    "recipe": recipe_digest(recipe),
                    "precision": precision_of(student_ds),
                    "mixture": batches.state_dict()["mixture"],
                    **self._split.identity,
                    **fingerprints(self._ready),
                    "student_parameters": student.parameter_count(),
                    **({} if teacher is None else teacher.identity),
                },
                keep=self._keep(),
                resize=self._resize,
                allowed_globals=CHECKPOINT_CLASSES,
                warn=self._sinks.message,
                first=self.publisher.settle,
            ),
            ranks=ranks,
            sinks=self._sinks,
            hooks=Hooks(
                Supervision(self._beat, self._stop_request),
                terms,
                step_metrics(recipe, objective, terms, batches, student, teacher, ranks, self._sinks),
                *self._at_validations(objective, terms, student, teacher),
                *turns(recipe, self._sinks),
                self.publisher,
                Remembered(wandb=StoredRunId(self._folder), **_stateful(teacher=teacher, rollout=rollout)),
            ),
        )
        return ending_on_time(trainer)

    def _at_validations(
        self, objective: Objective, terms: LossTerms, student: StudentEngine, teacher: Teacher | None
    ) -> Iterator[Hook]:
        """What is measured, in its order: the teacher-forced numbers, then what is generated."""
        ready, ranks, beat = self._ready, self._ranks, self._beat
        if ready.valid_datasets:
            goal = objective.with_prediction(self._validation_prediction())
            yield validation(ready, goal, terms, student, teacher, ranks, self._sinks, beat)
        model, engine = student.module.model, None if teacher is None else teacher.engine
        guard = sample_guard(ready, model, engine, self._folder, ranks, self._sinks)
        measured = MeasuredReplies(ready, model, ranks, beat) if measures_replies(ready) else None
        if guard is not None or measured is not None:
            yield AtValidation(Replies(measured, guard))

    # ---- student and teacher ---------------------------------------------------------------------------------

    def _narrow(self, module: StudentModule, objective: Objective, teacher_ds: dict[str, Any]) -> None:
        """Only at the first start: later ones have a checkpoint, and find all values there."""
        if not self._recipe.student.narrowed:
            return
        resumes = self._ranks.rank == 0 and newest_step(self._folder / "checkpoints") is not None
        if self._ranks.broadcast(resumes):
            return
        self._beat("looking at what matters in the teacher")
        placement, _ = placement_of(self._recipe, self._ranks.world_size, teacher_ds)
        device = self._ranks.device if placement == "replica" else torch.device("cpu")
        narrow_from_teacher(module, self._ready, objective, self._ranks, device, self._sinks.message)

    def _objective(self) -> Objective:
        losses = self._recipe.losses
        weights = losses.weights
        return Objective(
            weights,
            supervision_of(self._ready),
            losses.definition,
            losses.temperature,
            losses.clamp,
            self._kernels(weights),
            losses.measure,
        )

    def _kernels(self, weights: LossWeights) -> Kernels:
        """Raises KernelError if a fused kernel is asked for that cannot run here."""
        recipe = self._recipe
        positions = recipe.batch.max_tokens or self._split.per_rank * recipe.data.label_tokens
        asked, head_size = self._asked_kernels(), self._largest_head()
        kernels, line = choose(asked, self._ranks.device, self._logits_bytes(positions), head_size)
        if weights.needs_teacher:
            self._sinks.message(line)
        return kernels

    def _asked_kernels(self) -> dict[str, Choice]:
        """A cache of some tokens holds no factors of logits, and several teachers have none: all but the reference ask
        for them."""
        asked: dict[str, Choice] = self._recipe.losses.kernels.model_dump()
        lacks = (
            self._recipe.teacher.source == "cache" and not holds_head(self._recipe) and asked["prediction"] == "auto"
        )
        return asked | ({"prediction": "reference"} if lacks or self._ready.others else {})

    def _logits_bytes(self, positions: int) -> int:
        """Size of one model's float32 logits at so many label positions."""
        teacher = self._ready.teacher_shape
        vocabulary = len(self._ready.tokenizer) if teacher is None else teacher.vocab
        return 4 * positions * vocabulary

    def _largest_head(self) -> int:
        """Elements of one attention head, of teacher or student; 0 without a teacher."""
        teacher, compared, student = self._ready.teacher_shape, self._ready.compared_shape, self._recipe.student
        if teacher is None or compared is None:
            return 0
        own = teacher.resized(Sizes(width=student.width, heads=student.heads))
        return max(own.largest_head, compared.largest_head)

    def _keep(self) -> Retention:
        part, better = self._recipe.checkpoint, self._recipe.validation.better
        return Retention(part.keep_last, part.keep_best, part.keep_every, better, quantized_from(self._recipe))

    def _check_space(self, student: StudentEngine) -> None:
        """Before the teacher is loaded, which takes longest. Raises RunFolderError."""
        space = Space(student.checkpoint_bytes(), student.export_bytes(), self._keep(), self._recipe.stop.max_steps)
        check_space(self._folder, self._ranks, space, self._sinks.message)

    def _seed_everything(self) -> None:
        """Random streams of this rank (dropout); the student's weights and the data order have their own."""
        seed = self._recipe.seed * 100_003 + self._ranks.rank
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def _teacher(
        self, objective: Objective, student: StudentEngine, ds_config: dict[str, Any], precision: str
    ) -> Teacher | None:
        validation = objective.with_prediction(self._validation_prediction())
        head = any(one.teacher_request().head for one in (objective, validation))
        shares = student.module.model if self._recipe.student.share_encoder else None
        return teacher_of(self._ready, self._ranks, objective, ds_config, precision, head, self._beat, shares)

    # ---- data and decisions ----------------------------------------------------------------------------------

    def _validation_prediction(self) -> Implementation:
        """Validation has batches of its own size, and so its own choice."""
        recipe = self._recipe
        positions = (recipe.validation.per_rank_batch or recipe.batch.per_rank) * recipe.data.label_tokens
        asked = {"prediction": self._asked_kernels()["prediction"]}
        kernels, _ = choose(asked, self._ranks.device, self._logits_bytes(positions))
        return kernels.prediction


def supervision_of(ready: Prepared) -> dict[Stack, tuple[int, ...]]:
    """Teacher layer of each student layer, of stacks whose layers are compared."""
    losses, teacher, compared = ready.recipe.losses, ready.teacher_shape, ready.compared_shape
    found: dict[Stack, tuple[int, ...]] = {Stack.ENCODER: (), Stack.DECODER: ()}
    if teacher is not None and compared is not None and losses.weights.needs_teacher:
        asked = losses.weights.request(found)
        layered = {*asked.hidden, *(kind.query_stack for kind in asked.attention)}
        for stack, choice in by_stack(losses.encoder_layer_map, losses.decoder_layer_map).items():
            if stack not in layered:
                continue
            own = getattr(ready.recipe.student, f"{stack.value}_layers") or teacher.depth(stack)
            found[stack] = resolve_layer_map(choice, compared.depth(stack), own)
    return found


def _stateful(**parts: object) -> dict[str, Stateful]:
    """Those that have a state."""
    return {name: part for name, part in parts.items() if isinstance(part, Stateful)}
