"""Episodes to token ids, by ParlAI's rules.

Each entry of the history (a whole text or a whole label) is tokenised alone, and so is the delimiter; a context is
entry, delimiter, entry, ... up to the turn's own text. Tokenising the joined string would give other ids. Special
tokens are added by the layout alone: whatever a tokenizer would add by itself is off, and a special token of the
layout's kind (start, end, padding, unknown, mask) that somebody typed, such as `</s>`, is ordinary text. Other special
tokens, such as markers of speakers, are there to be written in texts, and stay whole.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from distill_engine.cluster.files import digest_of
from distill_engine.data.episodes import Episode
from distill_engine.data.errors import DataError, shown
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import Example, Keep, Notes, TokenFacts, TokenisedDataset, TokenLimits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Large enough to keep the tokenizer's threads busy, small enough that the texts of one chunk do not matter in memory.
_CHUNK_EPISODES = 2048


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of a Hugging Face name. A folder is read without any network access.

    Raises DataError: not there, not a tokenizer, or not one of the fast kind.
    """
    # Imported here: transformers takes seconds to import, and reading data files does not need it.
    from transformers import AutoTokenizer

    local = Path(name).expanduser().is_dir()
    source = str(Path(name).expanduser()) if local else name
    try:
        # False, not left out: left out means that transformers asks at the terminal
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, local_files_only=local, trust_remote_code=False
        )
    except Exception as error:  # a broken file makes transformers and tokenizers raise nearly anything
        raise DataError(
            f"No tokenizer could be loaded from {name!r} ({'a folder' if local else 'not a folder here'}): "
            f"{type(error).__name__}: {shown(str(error))}. {_without_json(source)}data.tokenizer is a folder with "
            "tokenizer.json, or vocab.json and merges.txt; or a Hugging Face name. Correct it."
        ) from error
    _fast_backend(tokenizer, name, _without_json(source))
    return tokenizer


def _without_json(folder: str) -> str:
    """What a folder holds instead of tokenizer.json, and what to do; empty where it holds no sentencepiece model."""
    place = Path(folder)
    found = sorted(file.name for file in place.glob("*") if file.suffix in (".spm", ".model")) if place.is_dir() else []
    if not found or (place / "tokenizer.json").exists():
        return ""
    if len(found) == 1:
        return (
            f"The folder holds a sentencepiece model ({found[0]}) and no tokenizer.json. Where transformers has a fast "
            "tokenizer for it, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one (it needs the "
            "package sentencepiece). "
        )
    return (
        f"The folder holds {len(found)} sentencepiece models ({', '.join(found)}) and no tokenizer.json: sources and "
        "targets are cut by models of their own, for which transformers has no fast tokenizer. Name a folder with a "
        "tokenizer.json that gives the teacher's ids as data.tokenizer. "
    )


@dataclass(frozen=True, eq=False)
class TokenChunk:
    """Consecutive tokens and bounds of a TokenisedDataset, the bounds counted from the dataset's first token.

    skipped, episodes  examples left out, and episodes read
    notes              of each example, in data whose kind keeps some
    """

    tokens: NDArray[np.int32]
    bounds: NDArray[np.int64]
    skipped: int
    episodes: int
    notes: tuple[str, ...] = ()


def warn_of_skipped(skipped: int) -> None:
    """Say that examples were left out, if any were."""
    if skipped:
        logger.warning("%d examples are left out: nothing was said before their reply.", skipped)


class DialogueTokenizer:
    """Turns episodes into examples, with one tokenizer, layout, delimiter and pair of limits."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        layout: SequenceLayout,
        delimiter: str,
        context_tokens: int,
        label_tokens: int,
    ) -> None:
        """`context_tokens` and `label_tokens` count special tokens. The given tokenizer is not changed.

        Raises DataError when the tokenizer is not a fast one, ValueError when a limit leaves no room for a word.
        """
        _check_limit("context_tokens", context_tokens, layout.context_overhead)
        _check_limit("label_tokens", label_tokens, 0)
        self._backend = _plain_text_backend(_fast_backend(tokenizer, type(tokenizer).__name__), markers(tokenizer))
        self._layout = layout
        self._limits = TokenLimits(context_tokens, label_tokens)
        self._delimiter_ids = self.encode([delimiter])[0]

    def keeping(self, which: Keep) -> DialogueTokenizer:
        """The same, but too long contexts keep these tokens."""
        other = copy.copy(self)
        other._limits = replace(self._limits, keep=which)
        return other

    def within(self, layout: SequenceLayout) -> DialogueTokenizer:
        """The same, but with other special tokens around texts. Raises ValueError as the constructor does."""
        _check_limit("context_tokens", self._limits.context, layout.context_overhead)
        other = copy.copy(self)
        other._layout = layout
        return other

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text alone, without special tokens."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def examples(self, episode: Episode) -> list[Example]:
        """The examples of one episode, in order."""
        dataset = self.tokenise([episode])
        return [dataset.example(index) for index in range(len(dataset))]

    def tokenise(self, episodes: Iterable[Episode], progress: Callable[[int], None] | None = None) -> TokenisedDataset:
        """All examples of the episodes, in order; `progress` hears now and then of so many episodes more."""
        chunks = []
        for chunk in self.chunks(episodes):
            chunks.append(chunk)
            if progress is not None:
                progress(chunk.episodes)
        tokens = np.concatenate([np.empty(0, np.int32), *(chunk.tokens for chunk in chunks)])
        bounds = np.concatenate([np.empty((0, 4), np.int64), *(chunk.bounds for chunk in chunks)])
        skipped = sum(chunk.skipped for chunk in chunks)
        notes = [note for chunk in chunks for note in chunk.notes]
        warn_of_skipped(skipped)
        kept = Notes.of(notes) if notes else None
        return TokenisedDataset(tokens, bounds, self._layout, self._limits, skipped, notes=kept)

    def chunks(self, episodes: Iterable[Episode]) -> Iterator[TokenChunk]:
        """The same a piece at a time: joined, the chunks' arrays are those of `tokenise`.

        No more than one chunk of episodes is asked for ahead, and a text that comes twice in a chunk is tokenised once.
        """
        begin = 0
        for chunk in _chunks(episodes, _CHUNK_EPISODES):
            entries = dict.fromkeys(entry for episode in chunk for entry in _entries(episode))
            with _all_cores():
                ids = dict(zip(entries, self.encode(list(entries)), strict=True))
            tokens, bounds = array("i"), array("q")
            for episode in chunk:
                self._append(episode, ids, tokens, bounds)
            table = np.array(bounds, np.int64).reshape(-1, 4)
            notes = [turn.note for episode in chunk for turn in episode.turns if turn.learnt]
            noted = np.array([note != "" for note in notes], bool)
            spoken = (table[:, 1] > table[:, 0]) | noted
            yield TokenChunk(
                np.array(tokens, np.int32),
                table[spoken] + begin,
                int((~spoken).sum()),
                len(chunk),
                tuple(filter(None, notes)),
            )
            begin += len(tokens)

    def dataset(
        self,
        tokens: NDArray[np.int32],
        bounds: NDArray[np.int64],
        skipped: int,
        facts: TokenFacts,
        notes: Notes | None = None,
    ) -> TokenisedDataset:
        """A dataset from arrays that these settings' `chunks` gave earlier."""
        return TokenisedDataset(tokens, bounds, self._layout, self._limits, skipped, facts, notes)

    @property
    def identity(self) -> str:
        """Digest of all that decides which ids `chunks` gives for a text: tokenizer and delimiter."""
        facts = [tokenizers.__version__, self._backend.to_str(), self._delimiter_ids]
        return digest_of(facts)

    def _append(self, episode: Episode, ids: dict[str, list[int]], tokens: array[int], bounds: array[int]) -> None:
        episode_start = len(tokens)
        for position, turn in enumerate(episode.turns):
            if position > 0:
                tokens.extend(self._delimiter_ids)
            tokens.extend(ids[turn.text])
            context_end = len(tokens)
            tokens.extend(self._delimiter_ids)
            label_start = len(tokens)
            tokens.extend(ids[turn.label])
            if turn.learnt:
                bounds.extend((episode_start, context_end, label_start, len(tokens)))


@contextmanager
def _all_cores() -> Iterator[None]:
    """Lets the tokenizer use its threads, which are off elsewhere because forked processes would complain of them."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _entries(episode: Episode) -> Iterator[str]:
    for turn in episode.turns:
        yield turn.text
        yield turn.label


def _chunks(episodes: Iterable[Episode], size: int) -> Iterator[list[Episode]]:
    source = iter(episodes)
    while chunk := list(islice(source, size)):
        yield chunk


def _check_limit(name: str, value: int, overhead: int) -> None:
    if value <= overhead:
        raise ValueError(
            f"{name} is {value}, but {overhead} special tokens are part of it and a word needs one more. "
            f"Set data.{name} to at least {overhead + 1}."
        )


def markers(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The special tokens that have no role of their own (start, end, padding, unknown, mask, ...), with their ids: what
    was added as `additional_special_tokens` (`extra_special_tokens`) and the like, and stays one token in a text.

    Raises DataError when the tokenizer is not a fast one.
    """
    backend = _fast_backend(tokenizer, type(tokenizer).__name__)
    roles = {str(getattr(tokenizer, role)) for role in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    added = backend.get_added_tokens_decoder()
    return {token.content: number for number, token in added.items() if token.special and token.content not in roles}


def _fast_backend(tokenizer: PreTrainedTokenizerBase, name: str, remedy: str = "") -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise DataError(
            f"The tokenizer {name!r} is not a fast one ({type(tokenizer).__name__}). Data is tokenised with the "
            f"`tokenizers` library. {remedy}Save it with a tokenizer.json, or use vocab.json and merges.txt."
        )
    return backend


def _plain_text_backend(backend: Tokenizer, whole: Collection[str]) -> Tokenizer:
    """A copy that cuts nothing, pads nothing and reads special tokens in text, but those of `whole`, as the characters
    they are."""
    pipeline = json.loads(backend.to_str())
    for token in pipeline["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in whole
    copy = Tokenizer.from_str(json.dumps(pipeline))
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy
