"""A Hugging Face tokenizer -> ParlAI's dictionary files, and the order of ids that ParlAI wants.

ParlAI's ids begin with null, start, end and unknown; every other row of the embedding keeps its place in line. Byte-
level BPEs become `bytelevelbpe`, which carries its vocabulary and merges along; word splitters that came from ParlAI
go back as they were, and others that split at spaces become `space`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from distill_engine.data.tokens.backends import markers
from distill_engine.interop.parlai.dictionary import SPECIAL_COUNTS, SPECIAL_OPTIONS, WORD_LEVEL, escape, unescape
from distill_engine.interop.parlai.options.errors import ParlaiError, shown
from distill_engine.interop.parlai.tokenizer import PROVENANCE

_NORMALIZER = "it changes texts before splitting (its normalizer), and ParlAI can only lower their case"
_SPECIALS = len(SPECIAL_OPTIONS)
_AGAIN = re.compile(r"<(/?\w+)_AGAIN>")  # how Hugging Face renamed Blenderbot's BPE tokens that look special
_PLAIN_PIECE = re.compile(r"Ġ?[!-/:-~]+")  # printable ASCII without digits; at most one space, in front


@dataclass(frozen=True)
class ParlaiDictionary:
    """What is written to `.dict`, `-vocab.json` and `-merges.txt`.

    order    ParlAI id -> row of the Hugging Face embedding
    tokens   ParlAI id -> token
    merges   of a byte-level BPE; None for word splitters
    options  the dictionary's options for the `.opt`
    spaced   ids are the same only for texts with single spaces between words: where there is more, or other white
             space, ParlAI's `space` finds empty words, or words with white space inside
    """

    order: list[int]
    tokens: list[str]
    merges: list[tuple[str, str]] | None
    options: dict[str, Any]
    spaced: bool = False

    @property
    def _listed(self) -> int:
        """How many tokens the `.dict` lists.

        A token that holds a backslash before n, t or r would be read as another one. A byte-level dictionary may
        end there: ParlAI appends the BPE's other tokens, in order.
        """
        twisted = (number for number, token in enumerate(self.tokens) if unescape(escape(token)) != token)
        return next(twisted, len(self.tokens)) if self.merges is not None else len(self.tokens)

    def write(self, dict_file: Path) -> None:
        """Write the files; raises OSError."""
        counts = [*SPECIAL_COUNTS, *([1] * (len(self.tokens) - _SPECIALS))]
        lines = [
            f"{escape(token)}\t{count}\n" for token, count in zip(self.tokens[: self._listed], counts, strict=False)
        ]
        dict_file.write_text("".join(lines), encoding="utf-8")
        if self.merges is not None:
            numbers = {token: number for number, token in enumerate(self.tokens[_SPECIALS:])}
            vocabulary = json.dumps(numbers, ensure_ascii=False, separators=(",", ":"))
            merges = "".join(f"{one} {other}\n" for one, other in self.merges)
            Path(f"{dict_file}-vocab.json").write_text(vocabulary, encoding="utf-8")
            Path(f"{dict_file}-merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


def dictionary_of(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> ParlaiDictionary:
    """The dictionary of a tokenizer and the model it belongs to.

    Raises ParlaiError if ParlAI has no tokenizer that would give the same ids.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(f"it is no fast one ({type(tokenizer).__name__})")
    pipeline = json.loads(backend.to_str())
    origin = tokenizer.init_kwargs.get(PROVENANCE) or {}
    specials = _special_rows(tokenizer, config)
    order = [*specials, *(row for row in range(config.vocab_size) if row not in specials)]
    splits_words = pipeline["model"]["type"] == "WordLevel"
    names = [str(origin.get(option, default)) for option, default in SPECIAL_OPTIONS.items()]
    if splits_words and not origin:  # somebody may type them: then they are words
        names = [str(tokenizer.convert_ids_to_tokens(row)) for row in specials]
    tokens = [*names, *_names(tokenizer, order[_SPECIALS:], set(names))]
    whole = markers(tokenizer)
    atomic = [one["content"] for one in pipeline["added_tokens"] if not one["special"] or one["content"] in whole]
    options: dict[str, Any] = dict(zip(SPECIAL_OPTIONS, names, strict=True))
    options["special_tok_lst"] = ",".join(atomic) or None
    if splits_words and origin.get("dict_tokenizer") in WORD_LEVEL:
        kept = {name: origin.get(name) for name in ("dict_tokenizer", "dict_lower")}
        return ParlaiDictionary(order, tokens, None, options | kept)
    problems = list(_word_obstacles(pipeline) if splits_words else _obstacles(pipeline))
    if problems:
        raise _refused("; ".join(problems))
    if splits_words:
        lower = bool(_steps(pipeline["normalizer"], "normalizers"))
        return ParlaiDictionary(
            order, tokens, None, options | {"dict_tokenizer": "space", "dict_lower": lower}, spaced=True
        )
    merges = [_pair(merge) for merge in pipeline["model"]["merges"]]
    lower = "Lowercase" in json.dumps(pipeline["normalizer"])
    step = _byte_level_step(pipeline)
    options |= {"dict_tokenizer": "bytelevelbpe", "dict_lower": lower, "bpe_add_prefix_space": step["add_prefix_space"]}
    return ParlaiDictionary(order, tokens, merges, options)


def _special_rows(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> list[int]:
    """Rows of null, start, end and unknown token: the model's, since they decide what its decoder reads."""
    rows = [config.pad_token_id, config.bos_token_id, config.eos_token_id, tokenizer.unk_token_id]
    named = dict(zip(("pad", "bos", "eos", "unk"), rows, strict=True))
    wrong = [name for name, row in named.items() if not isinstance(row, int) or not 0 <= row < config.vocab_size]
    if wrong or len(set(rows)) < len(rows):
        raise _refused(f"its special tokens are {named}; ParlAI needs four different ones, each with an id of its own")
    return rows


def _names(tokenizer: PreTrainedTokenizerBase, rows: list[int], taken: set[str]) -> Iterator[str]:
    """A name for each row; rows that no token uses are padding."""
    known = {row: token for token, row in tokenizer.get_vocab().items()}
    unused = (f"__FP16_PAD_{number}__" for number in range(len(rows)))
    used = taken | {_AGAIN.sub(r"<\1>", token) for token in known.values()}
    fresh = (name for name in unused if name not in used)
    for row in rows:
        name = _AGAIN.sub(r"<\1>", known[row]) if row in known else next(fresh)
        if name in taken:
            raise _refused(f"the token {name!r} has two rows, or the name of one of ParlAI's special tokens")
        taken.add(name)
        yield name


def _word_obstacles(pipeline: dict[str, Any]) -> Iterator[str]:
    """Why a pipeline with a table of words is none that ParlAI's `space` follows."""
    splits = _splits(pipeline)
    at_spaces = ({"type": "WhitespaceSplit"}, {"type": "CharDelimiterSplit", "delimiter": " "})
    if len(splits) != 1 or splits[0] not in at_spaces:
        yield f"its model is WordLevel, and it splits texts with {_types(pipeline)}, not at spaces alone"
    if any(step["type"] != "Lowercase" for step in _steps(pipeline["normalizer"], "normalizers")):
        yield _NORMALIZER


def _obstacles(pipeline: dict[str, Any]) -> Iterator[str]:
    """Why a pipeline is none that ParlAI's `bytelevelbpe` follows."""
    model = pipeline["model"]
    if model["type"] != "BPE":
        yield f"its model is {model['type']}, and only byte-level BPE and words between spaces have a counterpart"
        return
    unlike = {
        "dropout": model.get("dropout"),
        "continuing_subword_prefix": model.get("continuing_subword_prefix"),
        "end_of_word_suffix": model.get("end_of_word_suffix"),
        "byte_fallback": model.get("byte_fallback"),
        "ignore_merges": model.get("ignore_merges"),
    }
    yield from (f"its BPE has {name} {shown(value)}" for name, value in unlike.items() if value)
    if any(step["type"] != "Lowercase" for step in _steps(pipeline["normalizer"], "normalizers")):
        yield _NORMALIZER
    if not _byte_level_step(pipeline):
        yield f"it splits texts with {_types(pipeline)}, and ParlAI with ByteLevel alone"
    if any(step["type"] == "Digits" for step in _splits(pipeline)) and not _digits_stand_alone(pipeline):
        yield "it splits numbers into digits, which changes its ids; ParlAI does not"


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences unrolled."""
    if part is None:
        return []
    return [step for one in part[inner] for step in _steps(one, inner)] if part["type"] == "Sequence" else [part]


def _splits(pipeline: dict[str, Any]) -> list[dict[str, Any]]:
    return _steps(pipeline["pre_tokenizer"], "pretokenizers")


def _types(pipeline: dict[str, Any]) -> str:
    return ", ".join(step["type"] for step in _splits(pipeline)) or "nothing"


def _byte_level_step(pipeline: dict[str, Any]) -> dict[str, Any]:
    """The ByteLevel step, if the pipeline splits with it alone, or with single digits before it; else empty."""
    splits = _splits(pipeline)
    usual = [step for step in splits if step["type"] == "ByteLevel" and step.get("use_regex", True)]
    digits = [step for step in splits if step["type"] == "Digits" and step["individual_digits"]]
    return usual[0] if len(usual) == 1 and splits == [*digits, *usual] and len(digits) <= 1 else {}


def _digits_stand_alone(pipeline: dict[str, Any]) -> bool:
    """Whether splitting digits off changes nothing.

    So it is if no merge holds a digit, spaces alone or bytes that could be a number, and no part gets a space of its
    own in front.
    """
    merges = pipeline["model"]["merges"]
    plain = all(_PLAIN_PIECE.fullmatch("".join(_pair(merge))) for merge in merges)
    return plain and not _byte_level_step(pipeline).get("add_prefix_space", True)


def _pair(merge: Any) -> tuple[str, str]:
    one, other = merge.split(" ") if isinstance(merge, str) else merge
    return one, other


def _refused(reason: str) -> ParlaiError:
    return ParlaiError(
        f"The student's tokenizer has no counterpart in ParlAI: {reason}. A ParlAI model gives the same replies only "
        "with the same ids. Export the student as a Hugging Face folder."
    )
