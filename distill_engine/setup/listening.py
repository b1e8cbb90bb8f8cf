"""What a run needs to hear: the teacher's feature extractor, the window of its encoder, sounds beside texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill_engine.data.audio.clips import SpeechDataset
from distill_engine.data.audio.frontend import Frontend, load_frontend
from distill_engine.data.config import DataSection
from distill_engine.data.errors import DataError
from distill_engine.data.kinds.named import kind_of
from distill_engine.data.tokens.summary import uncut_lengths
from distill_engine.families.protocol import Family
from distill_engine.families.shape import Shape
from distill_engine.recipe.problem import Problem, raise_if_any
from distill_engine.recipe.schema import Recipe


def frontend_of(
    recipe: Recipe, family: Family, folder: Path | None, shape: Shape | None, source: Any
) -> Frontend | None:
    """The feature extractor in the teacher's folder; None for a family that reads. Raises RecipeError, DataError."""
    raise_if_any(source, list(input_problems(recipe.data, family)))
    if family.inputs != "audio":
        return None
    if folder is None or shape is None:
        rule = "Features are made as the teacher's folder says"
        raise_if_any(source, [Problem("teacher.path", "is null, but the data is sound", rule, "Name a teacher")])
        raise AssertionError
    if recipe.teacher.source == "cache":
        what = f"is {recipe.teacher.source}, but the data is sound"
        raise_if_any(source, [Problem("teacher.source", what, "Caches hold outputs for texts", "Set it to live")])
    frontend, window = load_frontend(folder), shape.window
    assert window is not None, "families that hear have a window"
    if reason := frontend.problem(window):
        raise_if_any(source, [Problem("teacher.path", f"is {str(folder)!r}: {reason}", "Both are of one model")])
    return frontend


def input_problems(data: DataSection, family: Family) -> Iterator[Problem]:
    """Data that models of the family cannot read, or hear."""
    for index, source in enumerate(data.datasets):
        if kind_of(source).inputs != family.inputs:
            what = f"is {source.kind!r}, whose inputs are {kind_of(source).inputs}"
            rule = f"Models of the family {family.name} take {family.inputs}"
            yield Problem(f"data.datasets.{index}.kind", what, rule, "Name data of another kind, or another teacher")


def with_whole_texts(dataset: SpeechDataset, data: DataSection, say: Callable[[str], None]) -> SpeechDataset:
    """The same without texts that data.label_tokens would cut: a model would learn to stop before the speaker does.
    Raises DataError where there are more of them than may be."""
    title = dataset.source
    _, lengths = uncut_lengths(dataset)
    fits = lengths <= data.label_tokens
    long = np.flatnonzero(~fits)
    if len(long) == 0:
        return dataset
    first = dataset.place(int(long[0]))
    told = (
        f"{title}, {first.where}: the text of {first.at!r} has {lengths[long[0]]} tokens, end token included, but "
        f"data.label_tokens is {data.label_tokens}"
    )
    if len(long) > data.max_bad_rows:
        raise DataError(
            f"{told}; {len(long) - 1:,} other texts are too long. A text is learnt whole. Raise data.label_tokens (as "
            "far as the teacher has positions), shorten the texts, or let data.max_bad_rows leave some out."
        )
    line = f"{len(long)} rows with texts longer than data.label_tokens are left out, the first one: {told}"
    say(f"{title}: {line}")
    assert dataset.notes is not None
    left_out = (*dataset.left_out, line)
    return replace(dataset, bounds=dataset.bounds[fits], notes=dataset.notes.only(fits), facts=None, left_out=left_out)
