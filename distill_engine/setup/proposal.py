"""A first recipe for a teacher and data of which nothing else is known: what is sensible, and the reasons."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.audio.frontend import load_frontend
from distill_engine.data.errors import DataError
from distill_engine.data.kinds.named import kind_of, options_of
from distill_engine.data.kinds.protocol import Guess, Kind, Reading, Source
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.summary import uncut_lengths
from distill_engine.data.tokens.tokenize import DialogueTokenizer, load_tokenizer
from distill_engine.families.lookup import family_of
from distill_engine.families.shape import Shape
from distill_engine.losses.config import all_terms
from distill_engine.metrics.named import computable
from distill_engine.models.loading import local_copy
from distill_engine.registry import load, names
from distill_engine.setup.languages import languages_of_columns

_SAMPLE_EPISODES = 2000
_ROUND_TO = 8
_MOST_TOKENS = 1024  # of a context or a label where positions are not limited
_VALIDATION = re.compile(r"(valid|val|dev)", re.IGNORECASE)


@dataclass(frozen=True)
class Proposal:
    """A recipe's text, and what people should know of how it came about."""

    text: str
    reasons: tuple[str, ...]


def propose(teacher: str, data: Sequence[str], faster: int, name: str) -> Proposal:
    """A recipe for a student whose decoder costs about 1 / `faster` of the teacher's.

    data  a training file and perhaps a validation file, a folder with splits, or a dataset's name on the Hub
    Raises ValueError (DataError) that says what to do where teacher or data cannot be made out.
    """
    folder = local_copy(teacher)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = family_of(config)
    shape = family.shape(config)
    guess, tokenizer = _guess(_splits(data)), load_tokenizer(str(folder))
    spoken, languages = languages_of_columns(guess, family, tokenizer)
    guess = replace(guess, entry={**guess.entry, **spoken})
    source = options_of(guess.entry).model_validate(dict(guess.entry))
    kind = kind_of(source)
    seconds = None if shape.window is None else load_frontend(folder).seconds
    contexts, labels = _lengths(kind, source, tokenizer, seconds)
    longest = min(shape.positions or _MOST_TOKENS, _MOST_TOKENS)
    before = max(2, 1 + len(family.prompt(_generation(folder)))) if shape.positions else 0
    context = _limit(contexts, 95, longest) if seconds is None else None  # every window of sound is as long
    label = _limit(labels, 99, longest - before)
    depth = max(1, round(shape.decoder_layers / faster))
    judge = _judge((*guess.metrics, *kind.metrics)) if kind.has(source, "valid") else None
    context_told = "" if context is None else f"95 % have at most {_at(contexts, 95)} tokens of {kind.words[0]}, "
    reasons = (
        f"teacher: a {shape.family} with {shape.encoder_layers} encoder and {shape.decoder_layers} decoder layers",
        guess.why,
        *((languages,) if languages else ()),
        f"lengths: of {len(contexts):,} examples {context_told}99 % have at most {_at(labels, 99)} tokens of "
        f"{kind.words[1]}",
        f"student: {depth} of {shape.decoder_layers} decoder layers (depth is waiting time); the encoder stays",
        f"validation: by {judge}, by which {kind.name} is judged" if judge else "validation: none without such a split",
    )
    return Proposal(_text(name, teacher, folder, guess, shape, depth, (context, label), judge, reasons), reasons)


def _splits(data: Sequence[str]) -> dict[str, str]:
    """Split -> file: by names, else the first is for training and the second for validation."""
    if len(data) > 2 or not data:
        raise DataError(f"{len(data)} places of data are named. Give a training file and perhaps a validation file.")
    if len(data) == 1:
        only = Path(data[0]).expanduser()
        both = {"train": data[0], "valid": data[0]} if only.is_dir() and _has_validation(only) else {"train": data[0]}
        return {split: _absolute(place) for split, place in both.items()}
    first, second = data
    if _VALIDATION.search(Path(first).name) and not _VALIDATION.search(Path(second).name):
        first, second = second, first
    return {"train": _absolute(first), "valid": _absolute(second)}


def _has_validation(folder: Path) -> bool:
    return any(_VALIDATION.match(entry.name) for entry in folder.iterdir())


def _absolute(place: str) -> str:
    return str(Path(place).expanduser().resolve()) if Path(place).expanduser().exists() else place


def _guess(splits: Mapping[str, str]) -> Guess:
    for name in names("kinds"):
        kind: Kind = load("kinds", name)
        found = kind.guess(splits)
        if found is not None:
            return found
    raise DataError(
        f"{splits['train']} is of no kind that can be told by its first rows. Kinds are: {', '.join(names('kinds'))}. "
        "Write the recipe's entry by hand (docs/data.md)."
    )


def _generation(folder: Path) -> dict[str, Any]:
    """The teacher's own generation settings; none without the file."""
    file = folder / "generation_config.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _lengths(
    kind: Kind, source: Source, tokenizer: Any, seconds: float | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of the first examples' contexts and labels, with room for the special ones of any family; `seconds`: of a
    window of sound."""
    plain = SequenceLayout(pad_id=0, start_id=1, end_id=2, context_suffix=(2,), decoder_prefix=(1,))
    encoder = DialogueTokenizer(tokenizer, plain, "\n", _MOST_TOKENS, _MOST_TOKENS)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the run will say what it leaves out
    try:
        held = encoder.tokenise(islice(kind.read(source, "train", Reading(seconds=seconds)), _SAMPLE_EPISODES))
    finally:
        logging.disable(before)
    if len(held) == 0:
        raise DataError(f"{source.title} holds no example. Name other data.")
    contexts, labels = uncut_lengths(held)
    return contexts + 1, labels + 1


def _at(lengths: NDArray[np.int64], share: int) -> int:
    return int(np.percentile(lengths, share, method="higher"))


def _limit(lengths: NDArray[np.int64], share: int, most: int) -> int:
    return min(-(-_at(lengths, share) // _ROUND_TO) * _ROUND_TO, most)


def _judge(metrics: Sequence[str]) -> str:
    """The first of these metrics that can be computed here; else perplexity."""
    ours = {metric.name for metric in computable()}
    return next((name for name in metrics if name in ours), "ppl")


def _text(
    name: str,
    teacher: str,
    folder: Path,
    guess: Guess,
    shape: Shape,
    depth: int,
    limits: tuple[int | None, int],
    judge: str | None,
    reasons: Sequence[str],
) -> str:
    def plain(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)  # JSON is YAML

    entry = [f"{key}: {plain(value)}" for key, value in guess.entry.items()]
    place = str(folder.resolve()) if Path(teacher).expanduser().is_dir() else teacher
    weights = "".join(f"\n    {weight}: 1" for weight in dict.fromkeys(t.weight for t in all_terms() if t.proposed))
    validation = f"""
validation:
  every_epochs: 0.5
  metric: {judge}
  generate_examples: 64       # so many validation examples are answered at each validation, by all ranks
  patience: 6                 # stop after so many validations without improvement
""" if judge else "\nvalidation:\n  patience: null              # there is no validation split\n"  # fmt: skip
    said = "\n".join(f"# - {reason}" for reason in reasons)
    context = "" if limits[0] is None else f"  context_tokens: {limits[0]}\n"
    return f"""# A first recipe, made by `distill new`. What it took, and why:
#
{said}
#
# Look at it: distill check --recipe FILE; distill data show --recipe FILE. Then: distill train --recipe FILE
name: {name}
seed: 1

teacher:
  path: {plain(place)}

student:
  init: teacher_layers        # embeddings, final norms and every mapped layer start as the teacher's
  encoder_layers: {shape.encoder_layers}
  decoder_layers: {depth}           # of {shape.decoder_layers}; for a smaller student see docs/narrow.md
  decoder_init_map: first_last   # first and last kept, the rest between; one alone is the last

losses:
  weights:                    # importances; balancing makes them comparable{weights}
  balance: gradient_alignment

data:
  datasets:
    - {f"{chr(10)}      ".join(entry)}
{context}  label_tokens: {limits[1]}

batch:
  per_rank: 16                # examples of one micro-batch on one rank: as many as memory holds

optimizer:
  name: adamw
  learning_rate: 3.0e-4       # students of copied layers stand more than a teacher's fine-tuning does
  clip_norm: 1.0

schedule:
  name: constant
  warmup_steps: 100
{validation}
stop:
  max_epochs: 10
"""
