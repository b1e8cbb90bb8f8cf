"""The real training loop over real engines, with faults at chosen attempts."""

import os
import signal
from typing import Any

import tiny_models as tiny
import torch
from engine_worker_bench import ADAM, Bench, digest
from engine_worker_validation import loader

from distill_engine.checkpoint.checkpoints import Checkpoints
from distill_engine.checkpoint.retention import Retention
from distill_engine.data.order.ahead import AheadLoader
from distill_engine.data.order.loader import TrainLoader
from distill_engine.data.order.mixture import Mixture
from distill_engine.engine.distributed import Ranks, RanksApartError
from distill_engine.engine.student import CHECKPOINT_CLASSES, StepOutcome, StudentEngine
from distill_engine.evaluate.validation import Validation, Validator
from distill_engine.rollouts.gold import GOLD
from distill_engine.teachers.ahead import AheadTeacher
from distill_engine.teachers.live import LiveTeacher
from distill_engine.telemetry.averages import Averages
from distill_engine.telemetry.sinks import SinkGroup
from distill_engine.train.config import StopSection
from distill_engine.train.decisions import Policies, TrainingError
from distill_engine.train.hooks import Hooks, Supervision
from distill_engine.train.learning_rate import LearningRate, Warmup
from distill_engine.train.loop import Trainer
from distill_engine.train.meter import Meter
from distill_engine.train.policies import EarlyStopping, Every, KeepBest
from distill_engine.train.progress import EndReason
from distill_engine.train.step_metrics import StepMetrics

NAN, OVERFLOW = float("nan"), 1e30


class FaultyStudent(StudentEngine):
    """A real engine whose loss is multiplied at chosen attempts, and that keeps a diary of its steps."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.faults: dict[int, float] = {}
        self.attempt = 0
        self.diary: list[dict] = []

    def backward(self, total: torch.Tensor) -> None:
        super().backward(total * self.faults.get(self.attempt, 1.0))

    def step(self, learning_rate: float) -> StepOutcome:
        before = digest(self.module)
        outcome = super().step(learning_rate)
        self.diary.append(
            {
                "learning_rate": learning_rate,
                "applied": outcome.applied,
                "norm": outcome.grad_norm,
                "scale": outcome.loss_scale,
                "scale_after": self.loss_scale,
                "moved": digest(self.module) != before,
            }
        )
        self.attempt += 1
        return outcome


def schedule() -> LearningRate:
    """A learning rate that is different at each of the first steps."""
    return LearningRate("linear", 1e-2, warmup=Warmup(2), total_steps=9)


def make_trainer(
    bench: Bench,
    name: str,
    ds_config: dict,
    *,
    precision: str = "fp32",
    faults: dict[int, float] | None = None,
    first_attempt: int = 0,
    max_steps: int = 6,
    max_skipped_steps: int = 100,
    ahead: bool = False,
    quantized_from: int | None = None,
) -> Trainer:
    """A run over the tiny Blenderbot in the folder `name`; `faults` spoil the last rank's losses; `ahead`: its
    teacher is a micro-batch ahead (teacher.overlap), as far as there is an order without streams."""
    goal = tiny.objective()
    module = tiny.student(bench.teachers / "blenderbot", goal, int8=quantized_from is not None)
    student = bench.student(module, ds_config, ADAM, FaultyStudent)
    student.attempt = first_attempt
    if bench.ranks.rank == bench.ranks.world_size - 1:
        student.faults = faults or {}
    teacher, batches = LiveTeacher(bench.teacher(precision=precision)), AheadLoader(_batches(bench), bench.ranks.device)
    in_steps = AheadTeacher(teacher, batches.upcoming, bench.ranks.device) if ahead else teacher
    meter, sinks = Meter(goal, Averages(), bench.ranks.world_size), SinkGroup([], print)
    validator = Validator(loader(bench), goal, ["first", "second"], bench.ranks)
    return Trainer(
        student=student,
        teacher=in_steps,
        objective=goal,
        batches=batches,
        rollout=GOLD,
        policies=Policies(
            schedule(),
            KeepBest("min"),
            EarlyStopping(None, "min"),
            Every(1),
            Every(4),
            Every(),
            StopSection(max_steps=max_steps, max_skipped_steps=max_skipped_steps),
            quantized_from=quantized_from,
        ),
        checkpoints=Checkpoints(
            bench.folder / name, bench.ranks, identity={}, keep=Retention(2), allowed_globals=CHECKPOINT_CLASSES
        ),
        ranks=bench.ranks,
        sinks=sinks,
        hooks=Hooks(
            Supervision(),
            StepMetrics(meter, batches, bench.ranks, sinks, max_skipped_steps, student.advice),
            Validation(validator, student, teacher, sinks),
        ),
    )


def _batches(bench: Bench) -> TrainLoader:
    source = tiny.Source(tiny.examples(40, "blenderbot", seed=3))
    return TrainLoader(
        [source],
        Mixture([40], [1.0], seed=5),
        tiny.layout("blenderbot"),
        per_rank=2,
        accumulation_steps=1,
        pad_to_multiple_of=1,
        rank=bench.ranks.rank,
        world_size=bench.ranks.world_size,
    )


def story(trainer: Trainer) -> dict:
    """Run it, and what became of it."""
    reason = trainer.run()
    trainer.batches.close()
    trainer.ranks.barrier()  # rank 0 tidies up after the last save
    return {
        "reason": reason.value,
        "steps": trainer.progress.steps,
        "skipped": trainer.progress.skipped_steps,
        "diary": trainer.student.diary,
        "digest": digest(trainer.student.module),
        "position": trainer.batches.examples,
        "checkpoints": sorted(p.name for p in trainer.checkpoints.folder.iterdir() if not p.name.startswith(".")),
        "best": trainer.policies.keep_best.best,
    }


def stop_on_one_rank(bench: Bench) -> dict:
    """A real SIGTERM to the last rank in its third step; then the same run again, and one that was never stopped.

    The first two have their teacher ahead: over validations, a stop and a resume nothing may differ."""
    ds_config = bench.student_ds()
    stopped = make_trainer(bench, "stopped", ds_config, ahead=True)
    stopped.hooks.each[0].stop_request.listen([signal.SIGTERM])
    if bench.ranks.rank == bench.ranks.world_size - 1:
        backward = stopped.student.backward

        def signalled(total: torch.Tensor) -> None:
            if stopped.student.attempt == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            backward(total)

        stopped.student.backward = signalled
    first = story(stopped)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    second = story(make_trainer(bench, "stopped", ds_config, first_attempt=3, ahead=True))
    return {"stopped": first, "continued": second, "calm": story(make_trainer(bench, "calm", ds_config))}


def ranks_apart(bench: Bench) -> dict:
    """What `agree` answers when ranks are together, and when one of them is a step ahead."""
    ranks = bench.ranks
    last = ranks.rank == ranks.world_size - 1
    together = ranks.agree(7, last, 100.0 + ranks.rank)
    calm = ranks.agree(8, False, 200.0 + ranks.rank)
    # one ahead; and one behind for one ahead, so that a rank between them is at the mean
    said = [_agreed(ranks, step) for step in (9 + last, 20 + ranks.rank)]
    return {"together": together, "calm": calm, "said": said}


def _agreed(ranks: Ranks, step: int) -> str:
    try:
        ranks.agree(step, False, 0.0)
    except RanksApartError as error:
        return str(error)
    return "nothing"


def hopeless(bench: Bench) -> dict:
    """Every loss of one rank is NaN: the run gives up, and has kept its weights."""
    trainer = make_trainer(
        bench, "hopeless", bench.student_ds(), faults=dict.fromkeys(range(99), NAN), max_skipped_steps=3
    )
    before = digest(trainer.student.module)
    try:
        reason: EndReason | str = trainer.run()
    except TrainingError as error:
        reason = str(error)
    trainer.batches.close()
    return {
        "said": str(reason),
        "attempts": trainer.student.attempt,
        "moved": digest(trainer.student.module) != before,
        "steps": trainer.progress.steps,
    }


def not_finite(bench: Bench) -> dict:
    """A student that predicts NaN: its validations are no best, and nothing is published."""
    trainer = make_trainer(bench, "not_finite", bench.student_ds(), max_steps=4)
    trainer.student.module.model.final_logits_bias.fill_(NAN)
    published: list[int] = []
    trainer.hooks.new_best = lambda progress, values: published.append(progress.steps)
    trainer._decide(bench.ranks.broadcast(trainer.hooks.valid_values(trainer.progress)))
    trainer.batches.close()
    return {
        "best": trainer.policies.keep_best.best,
        "published": published,
        "bad": trainer.policies.early_stopping.bad_validations,
    }
