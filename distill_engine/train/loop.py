"""The training loop: step, log, validate, save. It knows no DeepSpeed, no W&B and no YAML."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from distill_engine.checkpoint.checkpoints import Checkpoints
from distill_engine.checkpoint.faults import fault_point
from distill_engine.checkpoint.parts import JsonPart, Part, RngPart, WatchedPart
from distill_engine.losses.objective import Objective
from distill_engine.train.balancing import Balancer
from distill_engine.train.decisions import Policies
from distill_engine.train.meter import Meter, memory_gib
from distill_engine.train.nonfinite import NonFiniteReport
from distill_engine.train.policies import Every
from distill_engine.train.progress import EndReason, Progress
from distill_engine.train.roles import Batches, Ranks, Sinks, Student
from distill_engine.train.stop_request import StopRequest
from distill_engine.train.stopwatch import Stopwatch
from distill_engine.train.term_gradients import TermGradients
from distill_engine.train.validate import Shows, Validator
from distill_engine.train.window import lessons_of
from distill_engine.values import Batch, Features


class TrainingError(RuntimeError):
    """Training cannot go on, and starting again would not help."""


@dataclass
class Trainer:
    """One run. Fields are its parts; `publish_best(values, step)` is called on all ranks at each new best, `beat` with
    a few words whenever something begins (a watchdog listens)."""

    student: Student
    teacher: Shows | None
    objective: Objective
    batches: Batches
    validator: Validator | None
    policies: Policies
    checkpoints: Checkpoints
    ranks: Ranks
    meter: Meter
    sinks: Sinks
    publish_best: Callable[[dict[str, float], int], None]
    stop_request: StopRequest = field(default_factory=StopRequest)
    extra_parts: Mapping[str, Part] = field(default_factory=dict)
    beat: Callable[[str], None] = lambda _doing: None
    background_saves: bool = False  # checkpoints are written while training goes on
    term_gradients: TermGradients | None = None
    balancer: Balancer | None = None
    samples: Callable[[int, float], dict[str, float]] | None = None  # (step, seconds); evaluate/measured_replies.py
    teacher_window: bool = False  # one teacher pass for all micro-batches of a step: see train/window.py

    def __post_init__(self) -> None:
        self.progress = Progress()
        self._watch = Stopwatch(self.ranks.device)
        self._clock = time.perf_counter()
        self._report = NonFiniteReport(self.meter.nonfinite, self.ranks, self.sinks.message)
        self._unsaved = True
        self._validated: tuple[int, float | None] = (-1, None)  # step, and the deciding metric there
        self._last_outcome: Any = None
        self._last_learning_rate = 0.0
        self._stop_agreed = False

    # ---- the loop --------------------------------------------------------------------------------------------

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
            self._finish_save(wait=False)
            if self._due(self.policies.log_when):
                self._log()
            if self._due(self.policies.validate_when):
                self._validate()
            elif self._due(self.policies.save_when):
                self._save()
        if reason is not EndReason.STOP_REQUESTED and self._validation_is_stale():
            self._validate()  # the last steps count too
        self._save(background=False)  # also on a stop request: the next start resumes here
        return reason

    def _phase(self, name: str) -> AbstractContextManager[None]:
        self.beat(f"in phase {name!r} of optimizer step {self._attempts() + 1}")
        return self._watch.phase(name)

    def _step(self) -> None:
        with self._phase("data"):
            fault_point("in_step")
            group = [batch.to(self.ranks.device) for batch in self.batches.next_group()]
        # counts before any forward pass: every micro-batch divides by the same global counts
        divisors = self.objective.divisors(group, self.ranks.sum, self.ranks.world_size)
        lessons = lessons_of(self.teacher, group, self.objective.teacher_request(), self.teacher_window, self._phase)
        for batch, divisor in zip(group, divisors, strict=True):
            self._micro_batch(batch, next(lessons), divisor, len(group))
        self._last_learning_rate = self.policies.learning_rate.at(self.progress.steps)
        with self._phase("optimizer"):
            self._last_outcome = self.student.step(self._last_learning_rate)
        self.meter.count_step()
        self._count(self._last_outcome.applied)

    def _micro_batch(self, batch: Batch, taught: Features | None, divisor: Tensor, micro_batches: int) -> None:
        factors = self._measure(batch, taught, divisor)
        with self._phase("student"):
            shown = self.student.features(batch, self.objective.student_request())
        with self._phase("losses"):
            terms, hits = self.objective.terms_and_hits(shown, taught, batch)
            share = self.objective.total(terms, divisor, factors)
            self.meter.add_micro_batch(batch, terms, hits, micro_batches)
        with self._phase("backward"):
            self.student.backward(share)

    def _measure(self, batch: Batch, taught: Features | None, divisor: Tensor) -> Mapping[str, float] | None:
        """What is measured beside a step at times; the factors that hold for this micro-batch."""
        attempt = self._attempts()
        if self.balancer is not None:
            self.balancer.before_backward(attempt, batch, taught, divisor)
        factors = None if self.balancer is None else self.balancer.factors
        if self.term_gradients is not None and self.term_gradients.due(attempt):
            self.term_gradients.measure(attempt, batch, taught, divisor, self.ranks.sum, factors)
        return factors

    def _count(self, applied: bool) -> None:
        self.progress.count_step(applied)
        self._agree()
        self._unsaved = True
        outcome = self._last_outcome
        self._report.after_step(self._attempts(), applied, outcome.grad_norm, outcome.loss_scale)
        limit = self.policies.limits.max_skipped_steps
        if self.progress.skipped_in_a_row >= limit:
            raise TrainingError(
                f"{limit} optimizer steps in a row were skipped (stop.max_skipped_steps): {self._report.named()}. "
                f"Last applied step: {self.progress.steps}, loss scale {outcome.loss_scale:g}. {self.student.advice()}"
            )
        if applied:
            self._show_progress()

    def _agree(self) -> None:
        """One small reduction: the stop flag of any rank, rank 0's clock, and a check that all are at one step."""
        self.beat(f"agreeing with the other ranks after optimizer step {self._attempts()}")
        now = time.perf_counter()
        seconds = self.progress.seconds + now - self._clock
        self._clock = now
        # a signal may come to one rank at any moment: only what all know of decides, and the request itself is kept
        requested = self.stop_request.requested
        self._stop_agreed, self.progress.seconds = self.ranks.agree(self._attempts(), requested, seconds)

    def _attempts(self) -> int:
        return self.progress.steps + self.progress.skipped_steps

    def _validation_is_stale(self) -> bool:
        if self.validator is None or self.progress.steps == 0:
            return False
        return self.policies.validate_when.state_dict()["step"] != self.progress.steps

    def _end_reason(self) -> EndReason | None:
        if self._stop_agreed:
            return EndReason.STOP_REQUESTED
        verdict = self.policies.early_stopping.verdict
        if verdict is not None:
            return EndReason(verdict.value)
        return self.policies.limits.reached(self.progress, self.batches.epoch)

    # ---- what happens between steps ----------------------------------------------------------------------------

    def _moment(self) -> tuple[int, float, float]:
        return self.progress.steps, self.batches.epoch, self.progress.seconds

    def _due(self, trigger: Every) -> bool:
        applied = self._last_outcome is not None and self._last_outcome.applied
        return applied and trigger.due(*self._moment())

    def _log(self) -> None:
        self.policies.log_when.fired(*self._moment())
        if not self.meter.pending:
            return
        shares, wall = self._watch.shares()
        values = self.meter.read(self.ranks.sum, wall)
        self._report.after_reading(self._attempts(), values["train/nonfinite"])
        values |= {f"time/share/{phase}": share for phase, share in shares.items()}
        outcome = self._last_outcome
        values["train/lr"] = self._last_learning_rate
        if outcome.grad_norm is not None:
            values["train/grad_norm"] = outcome.grad_norm
        values["train/loss_scale"] = outcome.loss_scale
        values["train/skipped_steps"] = float(self.progress.skipped_steps)
        values["train/epoch"] = self.batches.epoch
        values["train/examples"] = float(self.batches.examples)
        values |= memory_gib(self.ranks.device)
        for beside in (self.term_gradients, self.balancer):
            if beside is not None:
                values |= beside.read()
        self.sinks.record("train", self.progress.steps, self.progress.seconds, values)

    def _validate(self) -> None:
        assert self.validator is not None, "the recipe rules refuse validation triggers without validation data"
        self._log()
        self.sinks.phase("validating")
        self.student.eval()
        on_batch = partial(self.beat, f"validating after step {self.progress.steps}")
        measured = self.validator.run(self.student, self.teacher, on_batch)
        if self.samples is not None:
            on_batch()
            measured |= self.samples(self.progress.steps, self.progress.seconds)  # of rank 0 if not of all
        # rank 0's numbers for everybody: decisions must not differ in the last bit
        values: dict[str, float] = self.ranks.broadcast(measured)
        self.student.train()
        self._decide(values)
        self._agree()  # the time until the next validation counts from the end of this one
        self.policies.validate_when.fired(*self._moment())
        if self.policies.save_after_validation:
            self._save()
        self.sinks.phase("training")
        self._watch.restart()

    def _decide(self, values: dict[str, float]) -> None:
        policies = self.policies
        if policies.metric not in values:
            raise TrainingError(
                f"validation.metric is {policies.metric!r}, which validation did not produce. It produced: "
                f"{', '.join(sorted(values))}."
            )
        self._unsaved = True
        self._validated = (self.progress.steps, value := values[policies.metric])
        policies.learning_rate.observe(values["loss"], self.progress.steps)
        policies.early_stopping.observe(value)
        improved = policies.keep_best.observe(value)
        named = {f"valid/{name}": number for name, number in values.items()}
        if policies.keep_best.best is not None:
            named[f"best/{policies.metric}"] = policies.keep_best.best
        self.sinks.record("valid", self.progress.steps, self.progress.seconds, named)
        if self.validator is not None and self.validator.doubt is not None:
            self.sinks.record("event", self.progress.steps, self.progress.seconds, {}, self.validator.doubt)
        if improved:
            self.beat(f"exporting the best student of step {self.progress.steps}")
            self.publish_best(values, self.progress.steps)

    def _finish_save(self, *, wait: bool) -> None:
        if wait:
            self.beat("waiting for the checkpoint before to be on the disk")
        self._unsaved |= self.checkpoints.finish(wait=wait) is False

    def _save(self, *, background: bool = True) -> None:
        self._log()  # the logging interval is not part of the checkpoint: what is pending is written now
        self._finish_save(wait=True)
        if not self._unsaved:
            return
        self.policies.save_when.fired(*self._moment())
        self.sinks.phase("saving")
        self.beat(f"saving the checkpoint of step {self.progress.steps}")
        step, value = self._validated
        save = self.checkpoints.begin if background and self.background_saves else self.checkpoints.save
        if save(self.progress.steps, self._parts(), value if step == self.progress.steps else None):
            self._unsaved = False
        self.beat("going on after a checkpoint")
        self.sinks.phase("training")
        self._watch.restart()

    def _parts(self) -> dict[str, Part]:
        rank = self.ranks.rank
        stateful: dict[str, Any] = {"progress": self.progress, "batches": self.batches} | self.policies.stateful()
        stateful |= {} if self.balancer is None else {"balance": self.balancer}
        parts: dict[str, Part] = {name: JsonPart(holder, rank) for name, holder in stateful.items()}
        parts = {"student": self.student, "rng": RngPart(rank), **parts, **self.extra_parts}
        return {name: WatchedPart(part, name, self.beat) for name, part in parts.items()}

    def _resume(self) -> None:
        step = self.checkpoints.resume(self._parts())
        self.sinks.rewind(step or 0)  # also what a run left that was killed before its first checkpoint
        if step is not None:
            self.sinks.message(f"resumed after step {step}; initial weights and other start options are not used")
            self._unsaved = False
        self._clock = time.perf_counter()
        self._watch.restart()

    def _show_progress(self) -> None:
        remaining = self.policies.validate_when.remaining(*self._moment())
        eta = self.policies.limits.seconds_left(self.progress)
        self.sinks.advance(self.progress.steps, remaining.words() or None, eta)
