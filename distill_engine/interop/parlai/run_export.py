"""A run's student in ParlAI's format, with the text options of the run's recipe."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from distill_engine.export.run import export_run
from distill_engine.interop.parlai.exporter import ExportedToParlai, export_parlai
from distill_engine.interop.parlai.options.errors import ParlaiError
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.schema import Recipe


def export_run_to_parlai(
    run: Path, target: Path, which: Literal["best", "last"] = "best"
) -> tuple[int, ExportedToParlai]:
    """Write a run's student as ParlAI loads it into the new folder `target`; returns its step and what was written.

    Projections are no part of a student, so there is nothing to remove afterwards. Raises what `export_run` raises,
    and ParlaiError for what ParlAI cannot represent.
    """
    if target.exists():
        raise ParlaiError(f"{target} exists already. Nothing is overwritten. Give a new folder, or remove it first.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as between:
        student = Path(between) / "student"
        step = export_run(run, student, which)
        recipe = run / "recipe.yaml"
        bart = AutoConfig.from_pretrained(student, trust_remote_code=False).model_type == "bart"
        options = recipe_options(load_recipe(recipe), bart) if recipe.is_file() else {}
        return step, export_parlai(student, target, options)


def recipe_options(recipe: Recipe, bart: bool) -> dict[str, Any]:
    """The ParlAI options that a recipe's student was trained with: how texts are joined and cut, and its tasks."""
    data = recipe.data
    return {
        "task": ",".join(task.name for task in data.tasks),
        "multitask_weights": [task.weight for task in data.tasks],
        "delimiter": data.delimiter,
        # BART's contexts end with END by themselves; with this option ParlAI would put a second one there
        "history_add_global_end_token": "end" if data.history_end_token and not bart else None,
        "truncate": max(data.context_tokens, data.label_tokens),
        "text_truncate": data.context_tokens,
        "label_truncate": data.label_tokens,
        "learn_positional_embeddings": recipe.student.train_position_tables,
    }
