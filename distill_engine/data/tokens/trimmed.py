"""A tokenizer with fewer tokens: which are kept, and the rewritten tokenizer.json, which cuts covered text as before.

Kept are special and added tokens, bytes (the byte-level alphabet, `<0x41>`), tokens that are counted or listed, and
what the model needs to arrive at them: of byte-pair encoding every token on the way of its merges. Kept tokens keep
their order, so that ids stay dense. Text whose tokens are all kept is cut as before: every step that the whole
tokenizer took there is still possible, and no new one has come.

WordLevel, WordPiece and Unigram choose among whole pieces; of Unigram the least likely piece stays as well, because
the cost of an unknown character is counted from it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_engine.data.errors import DataError

Content = dict[str, Any]  # of a tokenizer.json
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
KNOWN = ("BPE", "Unigram", "WordLevel", "WordPiece")


def token_counts(tokens: Iterable[NDArray[np.int32]], size: int) -> NDArray[np.int64]:
    """[size] int64: how often each id stands in the given arrays."""
    counts = np.zeros(size, dtype=np.int64)
    for one in tokens:
        counts += np.bincount(one, minlength=size)[:size]
    return counts


def kept_tokens(content: Content, wanted: Iterable[int]) -> list[int]:
    """Ids to keep, ascending: the wanted ones and what has to stay with them.

    Raises DataError for a tokenizer that cannot be trimmed.
    """
    vocabulary = _vocabulary(content)
    added = {int(one["id"]) for one in content.get("added_tokens") or ()}  # found in texts before the model sees them
    kept = {*wanted, *added}
    model, named = content["model"], {number: token for token, number in vocabulary.items()}
    kept |= {number for token, number in vocabulary.items() if _BYTE.fullmatch(token)}
    if '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("decoder")]):
        kept |= {vocabulary[letter] for letter in _byte_letters() if letter in vocabulary}
    unknown = model.get("unk_token")
    if unknown in vocabulary:
        kept.add(vocabulary[unknown])
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        kept |= {scores.index(min(scores)), *({model["unk_id"]} - {None})}
    if model["type"] == "BPE":
        ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
        for number in kept - added:
            if number in named:
                kept |= {vocabulary[part] for part in _on_the_way(named[number], ranks) if part in vocabulary}
    return sorted(kept)


def trimmed_content(content: Content, kept: Sequence[int]) -> Content:
    """The tokenizer.json of these ids alone, which become 0, 1, ... in their order."""
    new = {old: number for number, old in enumerate(kept)}
    made = copy.deepcopy(content)
    model = made["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if number in new}
    if model["type"] == "BPE":
        there = model["vocab"]
        pairs = [pair for pair in _merges(model) if {*pair, "".join(pair)} <= there.keys()]
        model["merges"] = [list(pair) for pair in pairs]
    for added in made.get("added_tokens") or ():
        added["id"] = new[int(added["id"])]
    if made.get("padding"):
        made["padding"]["pad_id"] = new[int(made["padding"]["pad_id"])]
    _renumber_processor(made.get("post_processor"), new)
    return made


def _vocabulary(content: Content) -> dict[str, int]:
    """Token -> id of the model, without added tokens. Raises DataError for a model that cannot be trimmed."""
    model = content["model"]
    kind = model.get("type")
    if kind not in KNOWN:
        raise DataError(f"its model is {kind!r}; those that can be trimmed are {', '.join(KNOWN)}")
    if kind == "BPE" and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        raise DataError("its byte-pair encoding marks parts of words with a prefix or suffix, which is not supported")
    if kind == "Unigram":
        return {token: number for number, (token, _) in enumerate(model["vocab"])}
    return {str(token): int(number) for token, number in model["vocab"].items()}


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs in the order of their rank; older files have them as text."""
    pairs = (one.split(" ") if isinstance(one, str) else one for one in model["merges"])
    return [(left, right) for left, right in pairs]


def _on_the_way(token: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """Letters and all that is merged until the token is whole. Within a text it comes about in the same way: merges go
    by rank, and none of those beside it reaches into it."""
    parts, seen = list(token), set(token)
    while len(parts) > 1:
        pairs = list(pairwise(parts))
        best = min(range(len(pairs)), key=lambda at: ranks.get(pairs[at], len(ranks)))
        if pairs[best] not in ranks:
            break  # it is never arrived at: such a token stands alone
        parts[best : best + 2] = ["".join(pairs[best])]
        seen.add(parts[best])
    return seen


def _byte_letters() -> set[str]:
    """The 256 letters that byte-level encodings write bytes as: printable ones of Latin-1 as themselves, the others
    from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return {chr(one) for one in printable} | {chr(0x100 + one) for one in range(256 - len(printable))}


def _renumber_processor(part: Any, new: Mapping[int, int]) -> None:
    """Ids of the special tokens that a post-processor adds, in place: `ids` of templates, (token, id) of the others."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "ids":
                part[name] = [new[int(one)] for one in value]
            elif name in ("sep", "cls"):
                part[name] = [value[0], new[int(value[1])]]
            else:
                _renumber_processor(value, new)
    elif isinstance(part, list):
        for value in part:
            _renumber_processor(value, new)
