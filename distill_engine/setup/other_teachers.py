"""Teachers beside the first: that their probabilities can be averaged with its own, token by token."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill_engine.cluster.files import digest_of
from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.families.lookup import family_of
from distill_engine.families.shape import Shape
from distill_engine.models.loading import local_copy
from distill_engine.recipe.compare_rules import features_compare
from distill_engine.recipe.problem import Problem, raise_if_any, shown
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.teacher_rules import tokens_fit_the_position_table
from distill_engine.registry import names

_RULE = "Teachers are averaged token by token: they have one family, one vocabulary and one layout of texts"
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class OtherTeacher:
    """One of `teachers` but the first, on this machine."""

    folder: Path
    config: Mapping[str, Any]
    weight: float

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        return family_of(self.config).shape(self.config)


def other_teachers(
    recipe: Recipe, config: Mapping[str, Any] | None, tokenizer: Any, source: Path | str
) -> tuple[OtherTeacher, ...]:
    """Those of the recipe; `config` and `tokenizer` are the first one's.

    Raises RecipeError with every difference.
    """
    found, problems = [], list[Problem]()
    for number, one in enumerate(recipe.teachers[1:], 1):
        assert config is not None, "the first of them is teacher.path"
        key = f"teachers.{number}.path"
        try:
            folder = local_copy(one.path, one.revision)
            own = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except Exception as error:  # without a network the Hub's client raises what its HTTP library raises
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            problems.append(Problem(key, f"is {one.path!r}, which cannot be read: {reason}"))
            continue
        differences = list(_differences(recipe, own, config, folder, tokenizer))
        problems += [Problem(key, f"is {one.path!r}, {difference}", _RULE) for difference in differences]
        if not differences:
            found.append(OtherTeacher(folder, own, one.weight))
            if recipe.features_of == number:
                first = family_of(config).shape(config)
                problems += [replace(problem, what=f"{problem.what} (of {one.path!r}, whose features are compared)")
                             for problem in features_compare(recipe, first, found[-1].shape)]  # fmt: skip
    raise_if_any(source, problems)
    return tuple(found)


def print_of(folder: Path, config: Mapping[str, Any] | None) -> str:
    """A short digest of a teacher's configuration, and of names and sizes of its weight files."""
    weights = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")]
    return digest_of([sorted((file.name, file.stat().st_size) for file in weights), dict(config or {})])[:16]


def _differences(
    recipe: Recipe, own: Mapping[str, Any], first: Mapping[str, Any], folder: Path, tokenizer: Any
) -> Iterator[str]:
    """From the first teacher, each as the continuation of `is <path>, ...`."""
    kind, wanted = own.get("model_type"), first.get("model_type")
    if kind != wanted or kind not in names("families"):
        yield f"a {shown(kind)} model, where the first teacher's is {shown(wanted)}"
        return
    family = family_of(own)
    if missing := family.missing(own):
        yield f"whose config.json lacks {', '.join(missing)}"
        return
    shape, rows = family.shape(own), family.shape(first).vocab
    if shape.vocab != rows:
        yield f"which has {shape.vocab} embedding rows, the first teacher {rows}"
    for key in _IDS:
        if own.get(key) != first.get(key):
            yield f"whose config.json has {key} {shown(own.get(key))}, the first teacher's {shown(first.get(key))}"
    for problem in tokens_fit_the_position_table(recipe, shape):
        yield f"but {problem.path} {problem.what}"
    try:
        theirs = load_tokenizer(str(folder))
    except Exception as error:  # whatever transformers raises for a folder without one
        yield f"whose tokenizer cannot be loaded, so nothing says that its ids mean the same: {error}"
        return
    yield from tokenizer_difference(theirs, tokenizer)


def tokenizer_difference(own: Any, wanted: Any) -> Iterator[str]:
    """The first token that has another id, or none; as the continuation of `is <path>, ...`."""
    mine, theirs = own.get_vocab(), wanted.get_vocab()
    apart = sorted(mine.keys() ^ theirs.keys()) or sorted(token for token in mine if mine[token] != theirs[token])
    if apart:
        one = apart[0]
        count = len({*mine.items()} ^ {*theirs.items()})
        yield (
            f"whose tokenizer has id {shown(mine.get(one))} for {one!r}, the first teacher's {shown(theirs.get(one))} "
            f"({count} differences)"
        )
