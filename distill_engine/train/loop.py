"""The training loop: step, log, validate, save. It knows no DeepSpeed, no W&B and no YAML."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from torch import Tensor

from distill_engine.checkpoint.checkpoints import Checkpoints
from distill_engine.checkpoint.faults import fault_point
from distill_engine.checkpoint.parts import Stateful
from distill_engine.losses.objective import Objective
from distill_engine.rollouts.protocol import Rollout
from distill_engine.teachers.protocol import Teacher
from distill_engine.train.decisions import Policies
from distill_engine.train.hooks import Hooks
from distill_engine.train.policies import Every
from distill_engine.train.progress import EndReason, Progress
from distill_engine.train.roles import Batches, Ranks, Sinks, Student
from distill_engine.train.saver import Saver
from distill_engine.train.stopwatch import Stopwatch
from distill_engine.values import Batch, Features


@dataclass
class Trainer:
    """One run. Fields are its parts; what is measured, balanced, sampled or published beside its steps is a hook."""

    student: Student
    teacher: Teacher | None
    objective: Objective
    batches: Batches
    rollout: Rollout
    policies: Policies
    checkpoints: Checkpoints
    ranks: Ranks
    sinks: Sinks
    hooks: Hooks

    def __post_init__(self) -> None:
        self.progress, self._now = Progress(), self.objective  # `_now`: without the terms that are idle
        self._watch = Stopwatch(self.ranks.device)
        self._clock = time.perf_counter()
        self._saver = Saver(self.checkpoints, self.student, self.ranks.rank, self._stateful, self.hooks.begins)
        self._unlogged = False  # whether steps were taken that no record is about
        self._applied = False  # the last step, by this process
        self._stop_agreed = False

    def run(self) -> EndReason:
        """Train until a limit, a policy or a signal says stop; resumes where the newest good checkpoint ends.

        Raises TrainingError if every step is skipped, CheckpointError if a checkpoint can be neither read nor
        written. After any error a checkpoint may still be on its way: `checkpoints.abandon`, once the error is said.
        """
        self._resume()
        self.sinks.phase("training")
        self.student.train()
        while (reason := self._end_reason()) is None:
            self._step()
            self._saver.finish(wait=False)
            if self._due(self.policies.log_when):
                self._log()
            if self._due(self.policies.validate_when):
                self._validate()
            elif self._due(self.policies.save_when):
                self._save()
        if reason is not EndReason.STOP_REQUESTED and self.policies.validation_is_stale(self.progress.steps):
            self._validate()  # the last steps count too
        self._save(background=False)  # also on a stop request: the next start resumes here
        return reason

    def _step(self) -> None:
        self.policies.quantize(self.student, self.progress.steps)
        with self._phase("data"):
            fault_point("in_step")
            group: Sequence[Batch] = [batch.to(self.ranks.device) for batch in self.batches.next_group()]
        with self._phase("rollout"):
            group = self.rollout.batches(group, self.teacher, self.student)
        # counts before any forward pass: every micro-batch divides by the same global counts
        divisors = self.objective.divisors(group, self.ranks.sum, self.ranks.world_size)
        self._now = self._now.for_factors(self.policies.factors())
        features = repeat(None) if self.teacher is None else self.teacher.features(group, self._now.teacher_request())
        for batch, divisor in zip(group, divisors, strict=True):
            self._micro_batch(batch, features, divisor, len(group))
        learning_rate = self.policies.learning_rate.at(self.progress.steps)
        with self._phase("optimizer"):
            outcome = self.student.step(learning_rate)
        self._count(outcome, learning_rate)

    def _micro_batch(
        self, batch: Batch, features: Iterator[Features | None], divisor: Tensor, micro_batches: int
    ) -> None:
        with self._phase("teacher"):
            teacher = next(features)
        self.hooks.before_backward(self.progress.attempts, batch, teacher, divisor)
        with self._phase("student"):
            student = self.student.features(batch, self._now.student_request())
        with self._phase("losses"):
            terms, hits = self._now.terms_and_hits(student, teacher, batch)
            share = self._now.total(terms, divisor, self.policies.factors())
            self.hooks.after_micro_batch(batch, terms, hits, micro_batches)
        with self._phase("backward"):
            self.student.backward(share)

    def _phase(self, name: str) -> AbstractContextManager[None]:
        self.hooks.begins(f"in phase {name!r} of optimizer step {self.progress.attempts + 1}")
        return self._watch.phase(name)

    def _count(self, outcome: Any, learning_rate: float) -> None:
        self._applied = bool(outcome.applied)
        self.progress.count_step(self._applied)
        self._agree()
        self._unlogged = True
        self._saver.changed()
        self.hooks.after_step(self.progress, outcome, learning_rate)
        if self._applied:
            until_validation = self.policies.validate_when.remaining(*self._moment()).words() or None
            self.sinks.advance(self.progress.steps, until_validation, self.policies.limits.seconds_left(self.progress))

    def _agree(self) -> None:
        """One small reduction: the stop flag of any rank, rank 0's clock, and a check that all are at one step."""
        attempt = self.progress.attempts
        self.hooks.begins(f"agreeing with the other ranks after optimizer step {attempt}")
        now = time.perf_counter()
        seconds = self.progress.seconds + now - self._clock
        self._clock = now
        # a signal may come to one rank at any moment: only what all know of decides, and the request itself is kept
        self._stop_agreed, self.progress.seconds = self.ranks.agree(attempt, self.hooks.stop_requested(), seconds)

    def _end_reason(self) -> EndReason | None:
        asked = EndReason.STOP_REQUESTED if self._stop_agreed else None
        return asked or self.policies.end_reason(self.progress, self.batches.epoch)

    def _moment(self) -> tuple[int, float, float]:
        return self.progress.steps, self.batches.epoch, self.progress.seconds

    def _due(self, trigger: Every) -> bool:
        return self._applied and trigger.due(*self._moment())

    def _log(self) -> None:
        self.policies.log_when.fired(*self._moment())
        if not self._unlogged:
            return
        self._unlogged = False
        shares, wall = self._watch.shares()
        values = {f"time/share/{phase}": share for phase, share in shares.items()} | self.hooks.train_values(wall)
        self.sinks.record("train", self.progress.steps, self.progress.seconds, values)

    def _validate(self) -> None:
        self._log()
        self.sinks.phase("validating")
        self.policies.quantize(self.student, self.progress.steps - 1)  # as its last step was
        self.student.eval()
        # rank 0's numbers for everybody: decisions must not differ in the last bit
        values: dict[str, float] = self.ranks.broadcast(self.hooks.valid_values(self.progress))
        self.student.train()
        self._decide(values)
        self._agree()  # the time until the next validation counts from the end of this one
        self.policies.validate_when.fired(*self._moment())
        if self.policies.save_after_validation:
            self._save()
        self.sinks.phase("training")
        self._watch.restart()

    def _decide(self, values: dict[str, float]) -> None:
        improved = self.policies.observe(values, self.progress.steps)
        self._saver.changed()
        self.sinks.record("valid", self.progress.steps, self.progress.seconds, self.policies.named(values))
        self.hooks.after_validation(self.progress, values)
        if improved:
            self.hooks.begins(f"exporting the best student of step {self.progress.steps}")
            self.hooks.new_best(self.progress, values)

    def _save(self, *, background: bool = True) -> None:
        self._log()  # the logging interval is not part of the checkpoint: what is pending is written now
        if not self._saver.due():
            return
        self.policies.save_when.fired(*self._moment())
        self.sinks.phase("saving")
        value = self.policies.value_at(self.progress.steps)
        self._saver.save(self.progress.steps, value, background=background and self.policies.background_saves)
        self.sinks.phase("training")
        self._watch.restart()

    def _stateful(self) -> dict[str, Stateful]:
        return {"progress": self.progress, "batches": self.batches, **self.policies.stateful(), **self.hooks.stateful}

    def _resume(self) -> None:
        step = self._saver.resume()
        self.hooks.begins_at(self.progress)
        self.sinks.rewind(step or 0)  # also what a run left that was killed before its first checkpoint
        if step is not None:
            self.sinks.message(f"resumed after step {step}; initial weights and other start options are not used")
        self._clock = time.perf_counter()
        self._watch.restart()
