"""ParlAI's dictionaries: which id each token has, and the files that hold them.

A `.dict` is one `token<TAB>count` per line. The four special tokens come first whatever the file says, a token that
is listed twice counts once, and tokens that the BPE knows but the file does not follow at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_engine.interop.parlai.options.errors import ParlaiError, shown

SPECIAL_OPTIONS = {
    "dict_nulltoken": "__null__",
    "dict_starttoken": "__start__",
    "dict_endtoken": "__end__",
    "dict_unktoken": "__unk__",
}
SPECIAL_COUNTS = (1000000003, 1000000002, 1000000001, 1000000000)
BYTE_LEVEL = ("bytelevelbpe", "gpt2", "slow_bytelevel_bpe")
ESCAPED_SPELLING = ("gpt2", "slow_bytelevel_bpe")  # these write bytes outside printable ASCII as \xNN
WORD_LEVEL = ("re", "split", "space")
_OLD_SPECIALS = ("__UNK__", "__NULL__", "__END__", "__START__")
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
PAD_SIZE = 8


@dataclass(frozen=True)
class Bpe:
    """A byte-level BPE: its own vocabulary (token -> BPE id), and its merges in order."""

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]


@dataclass(frozen=True)
class Dictionary:
    """A dictionary as ParlAI has it in memory; a token's position is its id.

    tokens   as spelled by the tokenizer (byte-level alphabet), the first four are special
    kind     dict_tokenizer
    atomic   tokens that are found in texts before anything else (special_tok_lst)
    bpe      for byte-level kinds
    """

    tokens: tuple[str, ...]
    kind: str
    lower: bool
    add_prefix_space: bool
    atomic: tuple[str, ...] = ()
    bpe: Bpe | None = None

    @property
    def ids(self) -> dict[str, int]:
        """Token -> id."""
        return {token: number for number, token in enumerate(self.tokens)}


def escape(token: str) -> str:
    """A token as a line of a `.dict` holds it."""
    return "".join(_ESCAPES.get(character, character) for character in token)


def unescape(text: str) -> str:
    """What ParlAI makes of a line. It does not undo `escape` for a token that holds a backslash before n, t or r."""
    for character, written in _ESCAPES.items():
        text = text.replace(written, character)
    return text


def byte_spelling(token: str) -> str:
    """How gpt2 dictionaries spell a BPE token: UTF-8 bytes outside printable ASCII as \\xNN."""
    return "".join(chr(byte) if 32 <= byte <= 127 else f"\\x{byte:x}" for byte in token.encode("utf-8"))


def read_lines(path: Path) -> list[str]:
    """The tokens of a `.dict`, in order. Raises ParlaiError: missing, no UTF-8, a count that is no number, empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ParlaiError(
            f"{path}: there is no such file. ParlAI keeps a model's dictionary in MODEL.dict. Name it with --dict."
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ParlaiError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is no UTF-8. "
            "A dictionary is UTF-8 text. Copy the file again."
        ) from error
    except OSError as error:
        raise ParlaiError(f"{path} cannot be read: {error.strerror}. Give a readable dictionary.") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    if not lines:
        raise ParlaiError(f"{path} is empty. A dictionary has a token on each line. Copy the file again.")
    return [_token(path, number, line) for number, line in enumerate(lines, start=1)]


def _token(path: Path, number: int, line: str) -> str:
    token, tab, count = line.partition("\t")
    if tab and not count.partition("\t")[0].strip().lstrip("-").isdecimal():
        raise ParlaiError(
            f"{path}, line {number}: {shown(line)} has no number behind the tab. "
            "A line is a token, a tab and its count. Copy the file again."
        )
    return unescape(token)


def special_tokens(options: Mapping[str, Any]) -> list[str]:
    """null, start, end and unknown token. Raises ParlaiError if one is switched off."""
    names = [options.get(name, default) for name, default in SPECIAL_OPTIONS.items()]
    for option, name in zip(SPECIAL_OPTIONS, names, strict=True):
        if not isinstance(name, str) or not name:
            raise ParlaiError(
                f"{option} is {shown(name)}. All four special tokens need a name to have ids 0 to 3. Set the option."
            )
    if len(set(names)) < len(names):
        options_named = ", ".join(SPECIAL_OPTIONS)
        raise ParlaiError(f"Special tokens {shown(names)} share a name ({options_named}). Give each its own.")
    return names


def build_dictionary(lines: Iterable[str], bpe: Bpe | None, options: Mapping[str, Any]) -> Dictionary:
    """The dictionary ParlAI builds from a file's tokens, the BPE's tokens and the options, FP16 pads included.

    Raises ParlaiError where the options ask for a tokenizer that has no exact counterpart.
    """
    kind = str(options.get("dict_tokenizer", "re"))
    specials = special_tokens(options)
    renamed = specials[0] == specials[0].lower()
    listed = (token.lower() if renamed and token in _OLD_SPECIALS else token for token in lines)
    # slow_bytelevel_bpe numbers its tokens by the BPE alone.
    tokens = dict.fromkeys([*specials, *(() if kind == "slow_bytelevel_bpe" else listed)])
    spelled = {} if bpe is None else {_spelled(token, kind): token for token in _in_order(bpe)}
    tokens |= dict.fromkeys(spelled)
    atomic = tuple(str(options.get("special_tok_lst") or "").split(",")) if options.get("special_tok_lst") else ()
    people = ("__p1__", "__p2__") if options.get("person_tokens") else ()
    tokens |= dict.fromkeys((*atomic, *people))
    if options.get("fp16") or options.get("force_fp16_tokens"):
        tokens |= dict.fromkeys(f"__FP16_PAD_{number}__" for number in range(-len(tokens) % PAD_SIZE))
    prefix = options.get("bpe_add_prefix_space")
    return Dictionary(
        tokens=tuple(spelled.get(token, token) for token in tokens),
        kind=kind,
        lower=bool(options.get("dict_lower")),
        add_prefix_space=(kind == "bytelevelbpe") if prefix is None else bool(prefix),
        atomic=atomic,
        bpe=bpe,
    )


def _in_order(bpe: Bpe) -> list[str]:
    return sorted(bpe.vocabulary, key=bpe.vocabulary.__getitem__)


def _spelled(token: str, kind: str) -> str:
    return byte_spelling(token) if kind in ESCAPED_SPELLING else token


def read_bpe(vocabulary: Path, merges: Path) -> Bpe:
    """The two files of a byte-level BPE, as GPT-2 and the `tokenizers` library write them. Raises ParlaiError."""
    try:
        held = json.loads(vocabulary.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        path = vocabulary if not isinstance(error, OSError) or error.filename == str(vocabulary) else merges
        raise ParlaiError(
            f"{path} cannot be read ({type(error).__name__}: {shown(str(error))}). A byte-level BPE has a JSON "
            "vocabulary and a text of merges. Copy the files again."
        ) from error
    if not isinstance(held, dict) or not held or not all(isinstance(value, int) for value in held.values()):
        raise ParlaiError(f"{vocabulary} is no vocabulary: it has to map tokens to numbers. Give the right file.")
    pairs = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    pairs = pairs[1:] if lines[0].startswith("#version") else pairs
    for number, pair in pairs:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= held.keys():
            raise ParlaiError(
                f"{merges}, line {number}: {shown(' '.join(pair))} is no merge of two tokens of {vocabulary.name}. "
                "The two files belong together. Give a pair that was saved together."
            )
    return Bpe(held, [(pair[0], pair[1]) for _, pair in pairs])


def check_fits(dictionary: Dictionary, rows: int, path: Path) -> Dictionary:
    """The dictionary with a name for each of the embedding's rows.

    An embedding that was padded for fp16, without the options saying so, is accepted. Raises ParlaiError if the
    dictionary does not fit.
    """
    size = len(dictionary.tokens)
    padded = size + -size % PAD_SIZE
    if rows not in (size, padded):
        raise ParlaiError(
            f"{path} makes a dictionary of {size} tokens (special ones, the BPE's and fp16 padding included), but the "
            f"model's embedding has {rows} rows. Every token has a row. Give the dictionary that the model was "
            "trained with."
        )
    taken = set(dictionary.tokens)
    names = (f"__FP16_PAD_{number}__" for number in range(2 * PAD_SIZE))
    fresh = [name for name in names if name not in taken][: rows - size]
    return Dictionary(
        (*dictionary.tokens, *fresh),
        dictionary.kind,
        dictionary.lower,
        dictionary.add_prefix_space,
        dictionary.atomic,
        dictionary.bpe,
    )
