"""What a run folder tells: its recipe, its records, and whether it is being trained right now."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from distill_engine.checkpoint.files import newest_step
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.problem import RecipeError
from distill_engine.recipe.schema import Recipe
from distill_engine.setup.run_folder import LOCK_FILE
from distill_engine.telemetry.jsonl import read_history
from distill_engine.telemetry.metrics import UnknownMetricError, describe
from distill_engine.telemetry.sinks import GAP, Record

METRICS_FILE = "metrics.jsonl"
RECIPE_FILE = "recipe.yaml"


class RunHistoryError(ValueError):
    """A folder that is no run, or has no records yet."""


@dataclass(frozen=True)
class RunHistory:
    """A run as its folder tells it. `recipe` is None where recipe.yaml is missing or of another version."""

    folder: Path
    recipe: Recipe | None
    recipe_text: str
    records: list[Record]
    running: bool
    checkpoint: int = -1  # step of the newest complete one

    @property
    def name(self) -> str:
        """The recipe's name, or the folder's."""
        return self.recipe.name if self.recipe is not None else self.folder.resolve().name

    @property
    def metric(self) -> str:
        """The deciding validation metric, without `valid/`."""
        return self.recipe.validation.metric if self.recipe is not None else "ppl"

    @property
    def max_steps(self) -> int | None:
        """The recipe's limit of steps, if it has one."""
        return self.recipe.stop.max_steps if self.recipe is not None else None

    @property
    def step(self) -> int:
        """The last recorded step."""
        return max((record.step for record in self.records), default=0)

    @property
    def seconds(self) -> float:
        """Training time at the last record, restarts included."""
        return self.records[-1].seconds if self.records else 0.0

    @property
    def phase(self) -> str:
        """training, finished (all steps are done) or stopped (nobody trains it now)."""
        if self.running:
            return "training"
        return "finished" if self.max_steps is not None and self.step >= self.max_steps else "stopped"

    @property
    def missing(self) -> str:
        """Which records metrics.jsonl lacks, in words; empty if none. Every checkpoint's step has its record."""
        lost = sum(int(record.values.get(GAP, 0)) for record in self.records)
        recorded = max((record.step for record in self.records if record.kind == "train"), default=0)
        late = f"those of steps {recorded + 1} to {self.checkpoint}" if self.checkpoint > recorded else ""
        return " and ".join([f"{lost} in between"] * bool(lost) + [late] * bool(late))

    def names(self) -> list[str]:
        """Every registered metric with a value, in order of first appearance."""
        found = dict.fromkeys(name for record in self.records for name in record.values)
        return [name for name in found if _registered(name)]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric; where a step was recorded twice (a restart), the later value."""
        values = {record.step: record.values[name] for record in self.records if name in record.values}
        return list(values), list(values.values())

    def last(self, kind: str) -> dict[str, float]:
        """Values of the last record of a kind (train, valid), or none."""
        return next((record.values for record in reversed(self.records) if record.kind == kind), {})

    def best(self) -> float | None:
        """The best value of the deciding metric so far."""
        values = self.series(f"best/{self.metric}")[1]
        return values[-1] if values else None


def read_run(folder: Path) -> RunHistory:
    """Read a run folder. Raises RunHistoryError if it holds no metrics.jsonl."""
    file = folder / METRICS_FILE
    if not file.is_file():
        raise RunHistoryError(
            f"{folder} is no run folder: it holds no {METRICS_FILE}. A run writes it when it starts; name its folder "
            "(--run-dir of the training command, runs/<recipe name> by default)."
        )
    recipe_file = folder / RECIPE_FILE
    text = recipe_file.read_text(encoding="utf-8") if recipe_file.is_file() else ""
    try:
        recipe = load_recipe(recipe_file) if text else None
    except RecipeError:  # of another version: what it says can still be shown, and the records stand for themselves
        recipe = None
    # before the records: a run that ends in between has written its last one, and a step is recorded before it is saved
    running, checkpoint = is_running(folder), newest_step(folder)
    return RunHistory(folder, recipe, text, read_history(file), running, checkpoint)


def is_running(folder: Path) -> bool:
    """Whether a process holds the run's lock. On file systems without locks a run never seems to be running."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    else:
        return False
    finally:
        os.close(handle)  # gives a lock that was got back


def _registered(name: str) -> bool:
    try:
        describe(name)
    except UnknownMetricError:
        return False
    return True
