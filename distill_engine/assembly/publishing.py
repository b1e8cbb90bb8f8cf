"""Exporting each new best student while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distill_engine.checkpoint.agreement import plain_reason
from distill_engine.engine.distributed import Ranks
from distill_engine.engine.student import StudentEngine
from distill_engine.export.hf import publish, write_student
from distill_engine.export.model_card import model_card
from distill_engine.recipe.identity import resolved_yaml
from distill_engine.recipe.load import without_folders
from distill_engine.setup.prepare import Prepared
from distill_engine.telemetry.machine import machine_record
from distill_engine.values import Batch


def best_publisher(
    ready: Prepared, student: StudentEngine, probe: Batch, folder: Path, ranks: Ranks, say: Callable[[str], None]
) -> Callable[[dict[str, float], int], None]:
    """What writes `folder`/best of (validation values, step); collective, rank 0 writes. An export that fails is told
    to `say`; the earlier one stays. `probe` is what a reloaded export is compared on."""
    recipe = without_folders(ready.recipe)

    def write(values: dict[str, float], step: int) -> None:
        card = model_card(
            recipe_yaml=resolved_yaml(recipe),
            name=recipe.name,
            family=ready.family.name,
            teacher=recipe.teacher.path,
            parameters=student.parameter_count(),
            step=step,
            metrics=values,
            machine=machine_record(),
        )
        publish(
            folder / "best",
            f"step-{step:08d}",
            lambda target: write_student(student.module.model, ready.tokenizer, target, card, probe),
        )

    def publish_best(values: dict[str, float], step: int) -> None:
        if ranks.rank == 0:
            try:
                write(values, step)
            except Exception as error:  # whatever it is: the other ranks wait, and no export is worth the run
                say(
                    f"the new best student could not be exported: {plain_reason(error)}. The earlier export is "
                    "kept and training goes on; `distill export` can write it from a checkpoint later."
                )
        ranks.barrier()

    return publish_best
