"""A whole run in milliseconds: toy student and teacher (one table each) under the real loop, meter, validation,
policies and checkpoints. Nothing here knows DeepSpeed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from torch.nn import functional

from distill_engine.checkpoint.checkpoints import Checkpoints
from distill_engine.checkpoint.retention import Retention
from distill_engine.evaluate.validation import Validation, Validator
from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.models.fake_int8 import fake_int8
from distill_engine.rollouts.gold import GOLD
from distill_engine.telemetry.averages import Averages
from distill_engine.train.config import StopSection
from distill_engine.train.decisions import Policies
from distill_engine.train.hooks import Hook, Hooks, Supervision
from distill_engine.train.learning_rate import LearningRate, Warmup
from distill_engine.train.loop import Trainer
from distill_engine.train.meter import Meter
from distill_engine.train.policies import EarlyStopping, Every, KeepBest
from distill_engine.train.step_metrics import StepMetrics
from distill_engine.values import Features, Stack

VOCABULARY, BATCHES, MICRO_BATCHES = 29, 6, 2


class ToyRanks:
    """One process whose agreed clock goes on by one second per agreement, and by `pause` at the next, however long
    they really take."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.agreed_steps: list[int] = []
        self.pause = 0.0

    def sum(self, tensor):
        return tensor.clone()

    def broadcast(self, value):
        return value

    def gather(self, value):
        return [value]

    def agree(self, step, stop, seconds):
        self.agreed_steps.append(step)
        pause, self.pause = self.pause, 0.0
        agreed = self.run.trainer.progress.seconds
        assert agreed <= seconds
        return stop, agreed + 1.0 + pause


class ToyTeacher:
    """Next-token logits from a fixed table."""

    def __init__(self) -> None:
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(7))
        self.asked = 0

    def features(self, group, request):
        for batch in group:
            self.asked += 1
            yield Features(logits=self.table[batch.decoder_input_ids])


class ToyStudent:
    """The same with a table that learns by SGD, dropout while training, and steps that are skipped on demand."""

    def __init__(self, run: Run, skipped_attempts: set[int]) -> None:
        self.run, self.skipped_attempts = run, skipped_attempts
        self.table = torch.zeros(VOCABULARY, VOCABULARY, requires_grad=True)
        self.attempts, self.backwards, self.training = 0, 0, False
        self.learning_rates: list[float] = []
        self.rounded = False

    def quantize(self, on):
        self.rounded = on
        self.run.events.append("int8" if on else "plain")

    def train(self):
        self.training = True

    def eval(self):
        self.training = False

    def features(self, batch, request):
        table = self.table
        if self.rounded:
            table = fake_int8(table)
        logits = functional.dropout(table[batch.decoder_input_ids], 0.2, self.training)
        return Features(logits=logits)

    def backward(self, total):
        assert self.training
        self.backwards += 1
        total.backward()

    def step(self, learning_rate):
        self.attempts += 1
        applied = self.attempts not in self.skipped_attempts
        norm = self.table.grad.norm().item()
        if applied:
            self.learning_rates.append(learning_rate)
            with torch.no_grad():
                self.table -= learning_rate * self.table.grad
        self.table.grad = None
        self.run.events.append(f"step {self.attempts}" if applied else f"skip {self.attempts}")
        if self.attempts == self.run.stop_at_attempt:
            self.run.supervision.stop_request.requested = True
        return SimpleNamespace(applied=applied, grad_norm=norm if applied else None, loss_scale=4.0)

    def advice(self):
        return "Lower the learning rate."

    def save(self, folder: Path):
        self.run.events.append("save")
        if self.run.failing_saves:
            self.run.failing_saves -= 1
            raise OSError("the disk is full")
        torch.save({"table": self.table.detach(), "attempts": self.attempts}, folder / "rank_00000.pt")

    def load(self, folder: Path):
        state = torch.load(folder / "rank_00000.pt", weights_only=True)
        self.table = state["table"].requires_grad_()
        self.attempts = state["attempts"]


class ToyModule:
    """The toy student as what gradients and values are taken of, beside its engine."""

    def __init__(self, student: ToyStudent) -> None:
        self.student = student

    @property
    def model(self):
        return SimpleNamespace(parameters=lambda: [self.student.table])

    def __call__(self, batch, request):
        return self.student.features(batch, request), []


class ToyBatches:
    """Six seeded batches, over and over, two per step."""

    def __init__(self, tiny) -> None:
        self.pool = [tiny.batch(seed=seed) for seed in range(BATCHES)]
        self.position = 0

    @property
    def examples(self):
        return 2 * self.position

    @property
    def epoch(self):
        return self.position / BATCHES

    def next_group(self):
        group = [self.pool[(self.position + n) % BATCHES] for n in range(MICRO_BATCHES)]
        self.position += MICRO_BATCHES
        return group

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class ToySinks:
    """Keeps what is told."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.records: list[tuple] = []
        self.messages: list[str] = []
        self.phases: list[str] = []
        self.progress: list[tuple] = []

    def record(self, kind, step, seconds, values, text=""):
        self.records.append((kind, step, seconds, values))
        self.run.events.append(f"{kind} record {step}")

    def phase(self, name):
        self.phases.append(name)

    def advance(self, step, until_validation=None, eta_seconds=None):
        self.progress.append((step, until_validation, eta_seconds))

    def message(self, text):
        self.messages.append(text)

    def rewind(self, step):
        self.records = [record for record in self.records if record[1] <= step]


class Run:
    """One start of a program. Options: limits, triggers and faults; the rest is fixed."""

    def __init__(
        self, folder: Path, tiny, *, limits: StopSection, log=None, validate=None, save=None, patience=None,
        stop_at=None, metric="ppl", save_after_validation=True, skipped=(), stop_at_attempt=None, failing_saves=0,
        teacher=True, validations=None, warmup=0, validation_seconds=0.0, keep_best=0, quantized_from=None,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        self.events: list[str] = []
        self.published: list[tuple[dict, int]] = []
        self.stop_at_attempt, self.failing_saves = stop_at_attempt, failing_saves
        self.validation_seconds = validation_seconds
        self.ranks, self.sinks, self.batches = ToyRanks(self), ToySinks(self), ToyBatches(tiny)
        self.student, self.teacher = ToyStudent(self, set(skipped)), ToyTeacher() if teacher else None
        self.module = ToyModule(self.student)
        weights = LossWeights(task=1.0, prediction=2.0 if teacher else 0.0)
        self.objective = Objective(weights, dict.fromkeys(Stack, ()))
        current = lambda: self.policies.factors()  # noqa: E731  what they are is said later
        real = Validator([tiny.batch(seed=0)], self.objective, ["toy"], self.ranks, factors=current)
        self.policies = Policies(
            LearningRate("constant", 0.5, warmup=Warmup(warmup, 0.5) if warmup else None),
            KeepBest("min"), EarlyStopping(patience, "min", stop_at), log or Every(), validate or Every(),
            save or Every(), limits, metric, save_after_validation, quantized_from=quantized_from,
        )  # fmt: skip
        self.checkpoints = Checkpoints(
            folder, self.ranks, identity={}, keep=Retention(2, keep_best, anew=quantized_from), allowed_globals=(),
            warn=self.sinks.messages.append,
        )  # fmt: skip
        validator = Scripted(self, validations) if validations else Watched(self, real)
        self.supervision, self.publishing = Supervision(), Publishing(self)
        self.meter = Meter(self.objective, Averages(), 1, current)
        self.hooks = Hooks(
            self.supervision,
            StepMetrics(
                self.meter, self.batches, self.ranks, self.sinks, limits.max_skipped_steps, self.student.advice
            ),
            Validation(validator, self.student, self.teacher, self.sinks, lambda doing: self.hooks.begins(doing)),
            self.publishing,
        )
        self.trainer = Trainer(
            student=self.student, teacher=self.teacher, objective=self.objective, batches=self.batches, rollout=GOLD,
            policies=self.policies, checkpoints=self.checkpoints, ranks=self.ranks, sinks=self.sinks, hooks=self.hooks,
        )  # fmt: skip

    def records(self, kind: str) -> list[tuple[int, float, dict]]:
        """Records of a kind without what depends on the machine."""
        machine = ("time/", "memory/", "train/tokens_per_second", "valid/seconds")
        return [
            (step, seconds, {name: v for name, v in values.items() if not name.startswith(machine)})
            for of, step, seconds, values in self.sinks.records
            if of == kind
        ]


class Publishing(Hook):
    """Notes each new best student."""

    def __init__(self, run: Run) -> None:
        self.owner = run

    def new_best(self, progress, values):
        self.owner.published.append((values, progress.steps))
        self.owner.events.append(f"publish {progress.steps}")


class Watched:
    """The real validator, noting that it ran and in which mode."""

    doubt = None  # a random teacher's is no part of these stories

    def __init__(self, run: Run, real: Validator) -> None:
        self.owner, self.real = run, real

    def run(self, student, teacher, on_batch):
        assert not student.training
        self.owner.events.append("validate")
        self.owner.ranks.pause = self.owner.validation_seconds
        return self.real.run(student, teacher, on_batch)


class Scripted:
    """A validation whose numbers are known beforehand."""

    doubt = None

    def __init__(self, run: Run, values: list[float]) -> None:
        self.owner, self.values = run, list(values)

    def run(self, student, teacher, on_batch):
        self.owner.events.append("validate")
        value = self.values.pop(0)
        return {"ppl": value, "loss": value, "seconds": 0.0}


@pytest.fixture(scope="module", params=["blenderbot", "bart"])
def world(request, tmp_path_factory):
    """Real tiny models: a narrow student with dropout, its teacher and its features for one batch."""
    folder = tiny_models.save_teacher(tmp_path_factory.mktemp("teacher"), request.param)
    goal = tiny_models.objective()
    sizes = tiny_models.Sizes(encoder_layers=1, decoder_layers=2, width=16, ffn_width=32, dropout=0.2)
    module = tiny_models.student(folder, goal, sizes).train()
    teacher = tiny_models.student(folder, tiny_models.objective(), tiny_models.Sizes(), seed=3).eval()
    batch = tiny_models.batch(tiny_models.examples(3, request.param), request.param)
    divisor = goal.divisors([batch], torch.clone, 1)[0]
    with torch.no_grad():
        teacher_features = teacher(batch, goal.teacher_request())[0]
    models = {"module": module, "teacher": teacher, "teacher_features": teacher_features}
    return SimpleNamespace(goal=goal, batch=batch, divisor=divisor, **models)


@pytest.fixture(scope="session")
def toy_in(tiny):
    """Makes starts of runs: `toy_in(folder, max_steps=..., ...)`."""

    def start(folder, *, max_steps=None, max_epochs=None, max_seconds=None, max_skipped_steps=100, **options) -> Run:
        limits = StopSection(
            max_steps=max_steps, max_epochs=max_epochs, max_seconds=max_seconds, max_skipped_steps=max_skipped_steps
        )
        return Run(folder / "checkpoints", tiny, limits=limits, **options)

    return start


@pytest.fixture
def toy(toy_in, tmp_path):
    """Makes starts of one run: `toy(max_steps=..., ...)`."""
    return partial(toy_in, tmp_path)
