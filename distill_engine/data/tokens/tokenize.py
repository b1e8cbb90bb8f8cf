"""Episodes to token ids, by ParlAI's rules.

Each entry of the history (a whole text or a whole label) is tokenised alone, and so is the delimiter; a context is
entry, delimiter, entry, ... up to the turn's own text. Tokenising the joined string would give other ids. Special
tokens are added by the layout alone: whatever a tokenizer would add by itself is off, and a special token of the
layout's kind (start, end, padding, unknown, mask) that somebody typed, such as `</s>`, is ordinary text. Other special
tokens, such as markers of speakers, are there to be written in texts, and stay whole.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distill_engine.cluster.files import digest_of
from distill_engine.data.episodes import Episode
from distill_engine.data.errors import DataError, shown
from distill_engine.data.tokens.backends import backend_of
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import Example, Keep, Notes, TokenFacts, TokenisedDataset, TokenLimits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Large enough to keep the tokenizer's threads busy, small enough that the texts of one chunk do not matter in memory.
_CHUNK_EPISODES = 2048


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of a Hugging Face name. A folder is read without any network access.

    Raises DataError: not there, or not a tokenizer.
    """
    # Imported here: transformers takes seconds to import, and reading data files does not need it.
    from transformers import AutoTokenizer

    local = Path(name).expanduser().is_dir()
    source = str(Path(name).expanduser()) if local else name
    try:
        with warnings.catch_warnings():
            # one of its tokenizers recommends it for a method that nothing calls
            warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
            # False, not left out: left out means that transformers asks at the terminal
            return AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # a broken file makes transformers and tokenizers raise nearly anything
        raise DataError(
            f"No tokenizer could be loaded from {name!r} ({'a folder' if local else 'not a folder here'}): "
            f"{type(error).__name__}: {shown(str(error))}. {_without_library(source)}data.tokenizer is a folder with "
            "tokenizer.json, vocab.json and merges.txt, or sentencepiece models; or a Hugging Face name. Correct it."
        ) from error


def _without_library(folder: str) -> str:
    """What to install for a folder with sentencepiece models and no tokenizer.json; empty where that is not it."""
    place = Path(folder)
    found = sorted(file.name for file in place.glob("*") if file.suffix in (".spm", ".model")) if place.is_dir() else []
    if not found or (place / "tokenizer.json").exists() or find_spec("sentencepiece") is not None:
        return ""
    return (
        f"The folder holds sentencepiece models ({', '.join(found)}) and no tokenizer.json, and the package that reads "
        "them is not installed: pip install 'distill-engine[sentencepiece]'. "
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

        Raises ValueError when a limit leaves no room for a word.
        """
        _check_limit("context_tokens", context_tokens, layout.context_overhead)
        _check_limit("label_tokens", label_tokens, 0)
        self._backend = backend_of(tokenizer)
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

    def encode(self, texts: Sequence[str], written: bool = False) -> list[list[int]]:
        """The ids of each text alone, without special tokens; `written`: as targets, which some tokenizers cut by a
        model of their own."""
        return self._backend.encode(texts, written)

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
            turns = [turn for episode in chunk for turn in episode.turns]
            read = self._ids_of((turn.text for turn in turns), written=False)
            written = self._ids_of((turn.label for turn in turns), written=True)
            tokens, bounds = array("i"), array("q")
            for episode in chunk:
                self._append(episode, read, written, tokens, bounds)
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
        return digest_of([*self._backend.facts(), self._delimiter_ids])

    def _ids_of(self, texts: Iterable[str], written: bool) -> dict[str, list[int]]:
        distinct = list(dict.fromkeys(texts))
        with _all_cores():
            return dict(zip(distinct, self.encode(distinct, written), strict=True))

    def _append(
        self,
        episode: Episode,
        read: dict[str, list[int]],
        written: dict[str, list[int]],
        tokens: array[int],
        bounds: array[int],
    ) -> None:
        """An earlier label is part of later contexts as it was cut for the decoder. Raises DataError where that gives
        ids of another vocabulary."""
        if self._backend.two_vocabularies and len(episode.turns) > 1:
            raise DataError(
                f"An episode has {len(episode.turns)} turns ({shown(episode.turns[0].label)} answers the first), and "
                "the tokenizer has a vocabulary for sources and one for targets: an earlier answer cannot be read. "
                "Give data whose examples have no history (kind: pairs), or a model with one vocabulary."
            )
        episode_start = len(tokens)
        for position, turn in enumerate(episode.turns):
            if position > 0:
                tokens.extend(self._delimiter_ids)
            tokens.extend(read[turn.text])
            context_end = len(tokens)
            tokens.extend(self._delimiter_ids)
            label_start = len(tokens)
            tokens.extend(written[turn.label])
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
