"""Exporting each new best student while training goes on."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from distill_engine.checkpoint.agreement import plain_reason
from distill_engine.checkpoint.background import ABANDON_SECONDS, BackgroundCall
from distill_engine.engine.distributed import Ranks
from distill_engine.engine.student import StudentEngine
from distill_engine.export.hf import host_model, probe_of, publish, write_student, write_student_files
from distill_engine.export.model_card import model_card
from distill_engine.recipe.identity import resolved_yaml
from distill_engine.recipe.load import without_folders
from distill_engine.recipe.quantize_rules import int8_note
from distill_engine.setup.prepare import Prepared
from distill_engine.telemetry.machine import machine_record
from distill_engine.train.hooks import Hook
from distill_engine.train.progress import Progress

THREAD_NAME = "best-exporter"
STUDENT_FILES = "student"


class BestPublisher(Hook):
    """Writes `folder`/best, on rank 0 and in a thread, from a copy of the weights in host memory.

    One export at a time; the others wait for nothing. A checkpoint that knows of a new best value must not become
    complete before the export of that student (`settle`), or a run killed between the two would lose it. An export that
    fails is told to `say`, by the main thread; the earlier one stays.

    unexported  step of the newest best student if its export failed in this process, else None
    """

    def __init__(
        self, ready: Prepared, student: StudentEngine, folder: Path, ranks: Ranks, say: Callable[[str], None]
    ) -> None:
        """Also writes `folder`/student: what an export needs beside weights, so that a checkpoint alone is enough."""
        self.unexported: int | None = None
        self._ready, self._student, self._folder, self._say = ready, student, folder, say
        self._first = ranks.rank == 0
        self._recipe = without_folders(ready.recipe)
        self._tokenizer = copy.deepcopy(ready.tokenizer)  # a thread of its own must not share its state
        self._pending: BackgroundCall[None] | None = None
        self._step = 0
        if self._first:
            self._describe()

    def new_best(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Export the student as it is now, with these validation values. On all ranks; rank 0 copies."""
        if not self._first:
            return
        self.wait()
        self._step = step = progress.steps
        try:
            model = host_model(self._student.module.model)
            card = self._card(values, step)
        except Exception as error:  # no export is worth the run, and the other ranks go on
            self._tell(error)
            return

        def write() -> None:
            probe = probe_of(model)
            target = self._folder / "best"
            publish(
                target,
                f"step-{step:08d}",
                lambda folder: write_student(model, self._tokenizer, folder, card, probe),
            )

        self._pending = BackgroundCall(THREAD_NAME, write)

    def settle(self, seconds: float | None = None) -> None:
        """Wait until nothing is being exported, or no longer than that. For any thread."""
        pending = self._pending
        if pending is not None:
            pending.wait(seconds)

    def wait(self) -> None:
        """As `settle`, and tell what went wrong. For the main thread."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
            self.unexported = None
        except Exception as error:
            self._tell(error)

    def abandon(self) -> None:
        """Before the process ends, for whatever reason: a thread must not be cut off in the middle of a library."""
        self.settle(ABANDON_SECONDS)

    def ending(self, metric: str, best: float | None) -> tuple[str, bool]:
        """What to say of the best student at the end of a run, and whether it has been exported, now or earlier."""
        self.wait()
        if best is None:
            return "", True
        link = self._folder / "best"
        if not link.is_dir():
            rest = f"`distill export {self._folder} DIR --which last` writes the newest checkpoint's student"
            return f", best {metric} {best:.4g}, but no export has succeeded: there is no {link}. {rest}", False
        held = self._held(link)
        if self.unexported is not None:
            lost = f"at step {self.unexported}, whose export failed"
            return f", best {metric} {best:.4g} {lost}: {link} has {held}", True
        return f", best {metric} {best:.4g}; {link} has {held}", True

    def _held(self, link: Path) -> str:
        """Whose student an export is; a run folder that was copied may hold the export itself in place of the link."""
        found = re.fullmatch(r"step-(\d+)(\..*)?", link.resolve().name)
        if found is None:
            return "an earlier student"
        note = int8_note(self._recipe, int(found[1]))
        return f"the student of step {int(found[1])}" + (f". {note}" if note else "")

    def _tell(self, error: Exception) -> None:
        self.unexported = self._step
        self._say(
            f"the new best student (step {self._step}) could not be exported: {plain_reason(error)}. The earlier "
            "export, if there is one, is kept and training goes on; `distill export --which last` writes a "
            "checkpoint's student."
        )

    def _card(self, values: Mapping[str, float], step: int) -> str:
        return model_card(
            recipe_yaml=resolved_yaml(self._recipe),
            name=self._recipe.name,
            family=self._ready.family.name,
            teacher=" + ".join(one.path for one in self._recipe.teachers) or self._recipe.teacher.path,
            parameters=self._student.parameter_count(),
            step=step,
            metrics=values,
            machine=machine_record(),
            note=int8_note(self._recipe, step),
        )

    def _describe(self) -> None:
        target, fresh = self._folder / STUDENT_FILES, self._folder / f".{STUDENT_FILES}.new"
        if target.is_dir():
            return
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            write_student_files(self._student.module.model, self._tokenizer, fresh)
            fresh.rename(target)
        except Exception as error:  # it only helps later: the run can do without
            self._say(f"{target} could not be written: {plain_reason(error)}. Exports need {self._folder / 'best'}.")
