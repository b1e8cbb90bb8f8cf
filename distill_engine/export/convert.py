"""`distill export`: a run's student, or any model folder, in another program's form; counted after it has replied."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from distill_engine.cluster.files import rename_synced, sync_tree
from distill_engine.export.hf import verify_folder
from distill_engine.export.protocol import RECORD, ExportedModel, Target, TargetError
from distill_engine.export.run import export_run
from distill_engine.families.lookup import family_of
from distill_engine.registry import load

Which = Literal["best", "last"]
Judge = Callable[[Path, ExportedModel], Mapping[str, Any]]


class HuggingFace(Target):
    """See Target. A run's export was compared when it was written, so here files are copied and tried once."""

    meaning = "a folder for transformers: weights, configuration, tokenizer, model card"
    quantizations = ()
    inputs = ("tokens", "audio")

    def write(self, student: Path, target: Path, quantize: str | None, recipe: Path | None) -> None:  # noqa: ARG002
        """See Target."""
        shutil.copytree(student, target)
        verify_folder(target)

    def open(self, folder: Path) -> None:  # noqa: ARG002
        """It is the student itself."""
        return


def export_student(
    source: Path,
    target: Path,
    name: str,
    quantize: str | None,
    judge: Judge,
    *,
    which: Which = "best",
    say: Callable[[str], None] = lambda _text: None,
) -> int | None:
    """Write `source` as the target called `name` into the new folder `target`; returns a run's step.

    source  a run folder, or any folder that save_pretrained wrote
    judge   told the student's folder and what generates from the export; what it returns is kept in RECORD. It raises
            TargetError for an export that must not count; then nothing is left behind

    Raises ValueError (TargetError among them) for what cannot be exported, ExportError for files that do not load.
    """
    chosen: Target = load("exports", name)
    if quantize is not None and quantize not in chosen.quantizations:
        known = f"It knows {', '.join(chosen.quantizations)}." if chosen.quantizations else "It has none."
        raise TargetError(f"--quantize {quantize}: --format {name} has no such quantisation. {known}")
    if target.exists():
        raise ValueError(f"{target} exists already. Give a new folder, or remove it first.")
    is_model = (source / "config.json").is_file() and not (source / "best").exists()
    if isinstance(chosen, HuggingFace) and not is_model:
        return export_run(source, target, which, say)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as between:
        student, step = source, None
        if not is_model:
            student = Path(between) / "student"
            step = export_run(source, student, which, say)
        inputs = family_of(json.loads((student / "config.json").read_text(encoding="utf-8"))).inputs
        if inputs not in getattr(chosen, "inputs", Target.inputs):
            raise TargetError(f"--format {name} has no form of models whose inputs are {inputs}. --format hf has one.")
        made = Path(between) / "made"
        recipe = source / "recipe.yaml"
        chosen.write(student, made, quantize, recipe if recipe.is_file() else None)
        opened = chosen.open(made)
        if opened is not None:
            told = {"format": name, "quantize": quantize, "source": source.name, **judge(student, opened)}
            (made / RECORD).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        sync_tree(made)
        rename_synced(made, target)
    return step


def converted(student: Path, name: str, quantize: str | None, folder: Path) -> ExportedModel:
    """The same for measurements: written into a folder of the caller's, not compared, not recorded."""
    chosen: Target = load("exports", name)
    chosen.write(student, folder, quantize, None)
    opened = chosen.open(folder)
    assert opened is not None, "asked only for targets that generate"
    return opened


TARGET = HuggingFace()
