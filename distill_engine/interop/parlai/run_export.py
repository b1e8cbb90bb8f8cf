"""A student in ParlAI's format, with the text options of its run's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from distill_engine.export.protocol import Target
from distill_engine.interop.parlai.exporter import export_parlai
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.schema import Recipe


class Parlai(Target):
    """See Target. Nothing generates, for ParlAI is not at hand; the exporter checks its loader's rules."""

    meaning = "ParlAI's files: model, .opt, dictionary"
    quantizations = ()

    def write(self, student: Path, target: Path, quantize: str | None, recipe: Path | None) -> None:  # noqa: ARG002
        """See Target. Raises ParlaiError for what ParlAI cannot represent."""
        bart = AutoConfig.from_pretrained(student, trust_remote_code=False).model_type == "bart"
        export_parlai(student, target, {} if recipe is None else recipe_options(load_recipe(recipe), bart))

    def open(self, folder: Path) -> None:  # noqa: ARG002
        """See Target."""
        return


def recipe_options(recipe: Recipe, bart: bool) -> dict[str, Any]:
    """The ParlAI options that a recipe's student was trained with: how texts are joined and cut, and its datasets."""
    data = recipe.data
    return {
        "task": ",".join(task.name for task in data.datasets),
        "multitask_weights": [task.weight for task in data.datasets],
        "delimiter": data.delimiter,
        # BART's contexts end with END by themselves; with this option ParlAI would put a second one there
        "history_add_global_end_token": "end" if data.history_end_token and not bart else None,
        "truncate": max(data.context_tokens, data.label_tokens),
        "text_truncate": data.context_tokens,
        "label_truncate": data.label_tokens,
        "learn_positional_embeddings": recipe.student.train_position_tables,
    }


TARGET = Parlai()
