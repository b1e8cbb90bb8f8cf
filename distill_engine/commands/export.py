"""`distill export`: a student for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from distill_engine.commands.evaluate import RecipeOption
from distill_engine.commands.terminal import refuse, say, tell

if TYPE_CHECKING:
    from distill_engine.evaluate.agreement import Agreement, Prompts

_NEW_TOKENS = 32
_ALIASES = {"huggingface": "hf"}  # its name when there were two formats


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="Run folder, or any transformers folder.")],
    target: Annotated[Path, typer.Argument(help="New folder for the student.")],
    which: Annotated[
        Literal["best", "last"],
        typer.Option(help="Of a run: best: the best validated student; last: the newest checkpoint's."),
    ] = "best",
    layout: Annotated[
        str, typer.Option("--format", help="hf, parlai, onnx, ctranslate2 (`distill list exports`).")
    ] = "hf",
    quantize: Annotated[
        str | None, typer.Option("--quantize", help="int8; ctranslate2 also int16, float16, bfloat16.")
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Refuse an export with a smaller share of equal replies.")
    ] = 0.0,
    prompts: Annotated[int, typer.Option(min=1, help="Validation prompts that both must answer.")] = 32,
    recipe: RecipeOption = None,
) -> None:
    """Write a student without its projections, for transformers, ParlAI, ONNX Runtime or CTranslate2.

    The latter two answer prompts beside the PyTorch student before they count: validation prompts of the run's recipe
    (or --recipe), else random tokens.
    """
    from distill_engine.export.convert import export_student
    from distill_engine.recipe.load import load_recipe
    from distill_engine.recipe.quantize_rules import int8_note

    def judge(student: Path, other: Any) -> Mapping[str, Any]:
        return _judged(student, other, [str(source)], recipe, prompts, min_agreement)

    chosen = _ALIASES.get(layout, layout)
    try:
        step = export_student(source, target, chosen, quantize, judge, which=which, say=tell)
    except (ValueError, OSError, RuntimeError) as error:
        refuse(error)
    what = f"{which} student of {source} (step {step})" if step is not None else str(source)
    say(f"{what} is in {target}")
    said = source / "recipe.yaml"
    if step is not None and said.is_file() and (note := int8_note(load_recipe(said), step)):
        say(note)


def _judged(
    student: Path, other: Any, models: list[str], recipe: Path | None, prompts: int, least: float
) -> Mapping[str, Any]:
    """Both answer; what was found, for the record. Raises TargetError below the limit."""
    import torch

    from distill_engine.data.tokens.tokenize import load_tokenizer
    from distill_engine.evaluate.agreement import agreement
    from distill_engine.evaluate.measure import load_model
    from distill_engine.export.protocol import TargetError

    model = load_model(student, torch.device("cpu"))
    tokenizer = load_tokenizer(str(student))
    given = _prompts(models, recipe, prompts, model, tokenizer)
    for name in getattr(other, "ignored", ()):
        tell(f"{name} is one of the student's generation settings, which the target does not have")
    found = agreement(model, other, tokenizer, given, _NEW_TOKENS)
    tell(_shown(found, given.source))
    if found.share < least:
        raise TargetError(
            f"{found.share:.1%} of the replies are the student's, fewer than --min-agreement {least:.1%}. Nothing is "
            "written. Export with less quantisation, or allow more."
        )
    sizes = {"mib_on_disk": round(other.mib_on_disk, 3), "parameters": model.num_parameters()}
    difference = None if found.first is None else vars(found.first)
    return {**sizes, "agreement": found.share, "prompts": found.prompts, "prompts_from": given.source,
            "first_difference": difference, "metrics": found.metrics}  # fmt: skip


def _prompts(models: list[str], recipe: Path | None, count: int, model: Any, tokenizer: Any) -> Prompts:
    """Validation prompts of the recipe, or random ones where there is none."""
    from distill_engine.evaluate.agreement import random_prompts, validation_prompts
    from distill_engine.evaluate.compare import CompareError, prepared, split_datasets

    try:
        dataset = next(iter(split_datasets(prepared(models, recipe, ()), "valid").values()))
    except CompareError:
        if recipe is not None:
            raise
        return random_prompts(int(model.config.vocab_size), count, 24)
    return validation_prompts(dataset, tokenizer, count)


def _shown(found: Agreement, source: str) -> str:
    lines = [f"{found.share:.1%} of {found.prompts} replies ({source} prompts) are the PyTorch student's"]
    changed = {name: pair for name, pair in found.metrics.items() if pair[0] != pair[1]}
    lines += [f"  {name}: {one:.4g} by PyTorch, {two:.4g} here" for name, (one, two) in changed.items()]
    if found.first is not None:
        first = found.first
        lines.append(f"  first difference, after {first.context!r}: PyTorch {first.student!r}, here {first.other!r}")
    return "\n".join(lines)
