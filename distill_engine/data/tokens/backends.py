"""What cuts texts into ids: the `tokenizers` library, or, for tokenizers that it has no form of (one
sentencepiece model for sources and one for targets, plain bytes), transformers' own Python.

Either reads special tokens of the layout's kind in a text as the characters they are, and keeps markers whole.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import tokenizers
from tokenizers import AddedToken, Tokenizer

from distill_engine.cluster.files import sha256_of
from distill_engine.data.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SETTINGS = "tokenizer_config.json"
_ORIGIN = ("is_local", "local_files_only", "name_or_path")  # no part of what a tokenizer does


class Backend(Protocol):
    """Called by DialogueTokenizer, a chunk of texts at a time.

    two_vocabularies  ids of targets mean other tokens than those of sources
    """

    two_vocabularies: bool

    def encode(self, texts: Sequence[str], written: bool) -> list[list[int]]:
        """The ids of each text alone, without special tokens; `written`: these are targets, not sources."""

    def facts(self) -> list[object]:
        """All that decides which ids a text has; the token cache's key holds their digest."""


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Backend:
    """A backend of its own: the tokenizer is not changed. Raises DataError where it is of neither kind."""
    if _fast(tokenizer) is not None:
        return _Library(tokenizer)
    if not hasattr(tokenizer, "tokenize"):
        raise DataError(f"{type(tokenizer).__name__} is no tokenizer of transformers. Correct data.tokenizer.")
    return _Python(tokenizer)


def markers(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The special tokens that have no role of their own (start, end, padding, unknown, mask, ...), with their ids: what
    was added as `additional_special_tokens` (`extra_special_tokens`) and the like, and stays one token in a text."""
    return {token.content: number for number, token in _markers(tokenizer).items()}


def _markers(tokenizer: PreTrainedTokenizerBase) -> dict[int, AddedToken]:
    roles = {str(getattr(tokenizer, role)) for role in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    backend = _fast(tokenizer)
    added = tokenizer.added_tokens_decoder if backend is None else backend.get_added_tokens_decoder()
    return {number: token for number, token in added.items() if token.special and token.content not in roles}


def _fast(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend if isinstance(backend, Tokenizer) else None


class _Library:
    """The `tokenizers` library: many texts at once, on all cores. It knows no targets."""

    two_vocabularies = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = _fast(tokenizer)
        assert backend is not None, "asked for a fast tokenizer"
        self._backend = _plain_text(backend, markers(tokenizer))

    def encode(self, texts: Sequence[str], written: bool) -> list[list[int]]:
        """See Backend."""
        del written
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def facts(self) -> list[object]:
        """See Backend."""
        return [tokenizers.__version__, self._backend.to_str()]


def _plain_text(backend: Tokenizer, whole: Collection[str]) -> Tokenizer:
    """A copy that cuts nothing, pads nothing and reads special tokens in text, but those of `whole`, as the characters
    they are."""
    pipeline = json.loads(backend.to_str())
    for token in pipeline["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in whole
    plain = Tokenizer.from_str(json.dumps(pipeline))
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True
    return plain


class _Python:
    """transformers' own code, a text at a time: some 20,000 sentences a second, once for each dataset."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)  # it is switched between sources and targets
        self.two_vocabularies = bool(getattr(tokenizer, "separate_vocabs", False))
        self._id: Callable[[str], Any] = self._tokenizer.convert_tokens_to_ids
        # the longest first, because one may begin as another does; each is a group of the expression, for its number
        spelt = sorted(_markers(tokenizer).items(), key=lambda one: -len(one[1].content))
        spaces = r"\s*"
        words = [spaces * token.lstrip + re.escape(token.content) + spaces * token.rstrip for _, token in spelt]
        self._marker_ids = [number for number, _ in spelt]
        self._whole = re.compile("|".join(f"({word})" for word in words)) if words else None

    def encode(self, texts: Sequence[str], written: bool) -> list[list[int]]:
        """See Backend."""
        # other targets differ from sources by the language around them, which is the layout's affair
        if hasattr(self._tokenizer, "spm_target"):
            mode = "_switch_to_target_mode" if written else "_switch_to_input_mode"
            getattr(self._tokenizer, mode)()
        return [self._ids(text) for text in texts]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = []
        begin = 0
        for found in () if self._whole is None else self._whole.finditer(text):
            assert found.lastindex is not None, "every alternative is a group"
            ids += [*self._cut(text[begin : found.start()]), self._marker_ids[found.lastindex - 1]]
            begin = found.end()
        return [*ids, *self._cut(text[begin:])]

    def _cut(self, text: str) -> list[int]:
        """The ids of a text without markers."""
        return [*map(self._id, self._tokenizer.tokenize(text, split_special_tokens=True))] if text else []

    def facts(self) -> list[object]:
        """See Backend: everything that is saved with the tokenizer (vocabulary, added tokens, settings such as `legacy`
        or `do_lower_case`) but where it came from; and the code."""
        import transformers

        with TemporaryDirectory() as place:
            self._tokenizer.save_pretrained(place)
            files = sorted(Path(place).iterdir())
            contents = {file.name: sha256_of(file) for file in files if file.name != _SETTINGS}
            settings: dict[str, Any] = json.loads((Path(place) / _SETTINGS).read_text(encoding="utf-8"))
        kept = {name: value for name, value in settings.items() if name not in _ORIGIN}
        return [transformers.__version__, type(self._tokenizer).__name__, contents, kept]
