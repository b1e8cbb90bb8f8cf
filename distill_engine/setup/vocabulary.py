"""`student.vocabulary: trimmed`: a copy of the teacher with the tokens of the training data alone.

The copy is an ordinary model folder beside the token cache: configuration, generation settings and tokenizer with new
ids, embeddings and output with the kept rows (models/trimmed.py says why its softmax is the teacher's, renormalised).
It takes the teacher's place in everything that follows, so teacher and student read the same ids of the same text, in
training, validation and evaluation, and no term, kernel or engine knows of two vocabularies.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tokenizers import Tokenizer

from distill_engine.cluster.files import digest_of, rename_synced, replace_text, sync_tree
from distill_engine.data.errors import DataError
from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.data.tokens.trimmed import kept_tokens, token_counts, trimmed_content
from distill_engine.models.trimmed import named_ids, write_trimmed

_FORMAT = 1
_TEXTS_AT_A_TIME = 2**16
_LEFT_OUT = (".model", ".spm", ".txt")  # older forms of the same vocabulary, with the old ids
_ALSO = ("vocab.json", "added_tokens.json")


@dataclass(frozen=True)
class Vocabulary:
    """What was kept.

    folder    the trimmed teacher
    kept      old ids, ascending; their position is the new id
    of        tokens of the whole tokenizer
    coverage  share of the validation data's tokens that are kept; None without validation data
    """

    folder: Path
    kept: tuple[int, ...]
    of: int
    coverage: float | None

    def __str__(self) -> str:
        said = f"vocabulary: {len(self.kept):,} of {self.of:,} tokens are kept"
        return said if self.coverage is None else f"{said}; they make up {self.coverage:.2%} of the validation data"


@dataclass(frozen=True)
class Wanted:
    """What a recipe keeps: tokens that the training data uses `minimum` times, or those in `listed`."""

    minimum: int
    listed: Path | None


def trimmed_teacher(
    folder: Path,
    tokenizer: Any,
    train: Sequence[TokenisedDataset],
    valid: Sequence[TokenisedDataset],
    wanted: Wanted,
    cache: Path,
) -> Vocabulary:
    """The trimmed copy of the model in `folder`, written unless it is in the cache already. Any number of processes may
    ask for it at a time.

    Raises DataError for a tokenizer that cannot be trimmed and for a list that cannot be read, WeightsError for such a
    model, OSError where the cache cannot be written.
    """
    what = f"The tokenizer of {folder} ({type(tokenizer).__name__}) cannot be trimmed"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise DataError(
            f"{what}: transformers' Python cuts its texts, without a tokenizer.json. Leave student.vocabulary out."
        )
    content = json.loads(backend.to_str())
    size = len(tokenizer)
    counts = token_counts((dataset.tokens for dataset in train), size)
    chosen = np.flatnonzero(counts >= wanted.minimum) if wanted.listed is None else _listed(wanted.listed, tokenizer)
    always = {one for one in (*named_ids(folder), *tokenizer.all_special_ids) if one < size}
    try:
        kept = kept_tokens(content, {*map(int, chosen), *always})
    except DataError as error:
        raise DataError(f"{what}: {error}. Leave student.vocabulary out.") from error
    # fine-tuned models of one kind have files of the same names and sizes: where and when tells them apart
    facts = {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir() if file.is_file()}
    key = digest_of([_FORMAT, str(folder.resolve()), sorted(facts.items()), digest_of(content), kept])[:16]
    target = cache / "vocabularies" / key
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f"{key}.lock"):
        if not _whole(target):
            shutil.rmtree(target, ignore_errors=True)
            _write(folder, tokenizer, content, kept, target)
    held = token_counts((dataset.tokens for dataset in valid), size)
    coverage = float(held[kept].sum() / held.sum()) if held.sum() else None
    return Vocabulary(target, tuple(kept), size, coverage)


def leave_size(cache: Path, digest: str, vocabulary: Vocabulary) -> None:
    """For `launcher plan`, which counts no tokens: what the recipe of this digest came to."""
    config = json.loads((vocabulary.folder / "config.json").read_text(encoding="utf-8"))
    replace_text(cache / "vocabularies" / f"{digest}.json", json.dumps({"rows": config["vocab_size"]}))


def check_same_tokens(
    vocabulary: Vocabulary, before: Sequence[TokenisedDataset], after: Sequence[TokenisedDataset]
) -> None:
    """Texts of the training data whose every token is kept must be cut as before. Raises DataError where one is not."""
    new = np.full(vocabulary.of, -1, dtype=np.int64)
    new[list(vocabulary.kept)] = np.arange(len(vocabulary.kept))
    for old, made in zip(before, after, strict=True):
        if len(old) != len(made):  # a context was dropped whole: nothing tells which one
            continue
        for (begins, ends), (new_begins, new_ends) in zip(_texts(old.bounds), _texts(made.bounds), strict=True):
            for first in range(0, len(begins), _TEXTS_AT_A_TIME):
                part = slice(first, first + _TEXTS_AT_A_TIME)
                whole, lengths = _cut_out(old.tokens, begins[part], ends[part])
                if not _same_texts(new[whole], lengths, *_cut_out(made.tokens, new_begins[part], new_ends[part])):
                    raise DataError(
                        f"The trimmed tokenizer in {vocabulary.folder} cuts the training data otherwise than the "
                        "teacher's does. Leave student.vocabulary out."
                    )


def _same_texts(
    expected: NDArray[np.int64], lengths: NDArray[np.int64], found: NDArray[np.int32], new_lengths: NDArray[np.int64]
) -> bool:
    """Whether texts, one after the other, are equal where none of their tokens was dropped (-1) on purpose."""
    numbers = np.arange(len(lengths))
    kept = np.bincount(np.repeat(numbers, lengths)[expected < 0], minlength=len(lengths)) == 0
    if not np.array_equal(lengths[kept], new_lengths[kept]):
        return False
    return np.array_equal(expected[np.repeat(kept, lengths)], found[np.repeat(kept, new_lengths)])


def _texts(bounds: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Begins and ends of what each example adds to its episode's history: the source of its turn, and its label."""
    begins = bounds[:, 0].copy()
    goes_on = np.flatnonzero(bounds[1:, 0] == bounds[:-1, 0]) + 1
    begins[goes_on] = bounds[goes_on - 1, 3]
    yield begins, bounds[:, 1]
    yield bounds[:, 2], bounds[:, 3]


def _cut_out(
    tokens: NDArray[np.int32], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Stretches of the tokens one after the other, and their lengths."""
    lengths = ends - begins
    before = np.cumsum(lengths) - lengths
    return tokens[np.repeat(begins - before, lengths) + np.arange(int(lengths.sum()))], lengths


def _listed(file: Path, tokenizer: Any) -> list[int]:
    """Ids of the tokens in a file, one a line."""
    try:
        tokens = [line for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"student.vocabulary_list {file} cannot be read: {error}. Correct the path.") from error
    known = tokenizer.get_vocab()
    wrong = [token for token in tokens if token not in known]
    if wrong:
        raise DataError(
            f"student.vocabulary_list {file}: {len(wrong)} of {len(tokens)} lines are no tokens of the teacher's "
            f"tokenizer ({', '.join(map(repr, wrong[:3]))}). Lines are tokens as tokenizer.json writes them."
        )
    return [known[token] for token in tokens]


def _whole(folder: Path) -> bool:
    """Whether everything is there; what its links point at may have gone."""
    return (folder / "tokenizer.json").is_file() and all(file.exists() for file in folder.iterdir())


def _write(folder: Path, tokenizer: Any, content: dict[str, Any], kept: list[int], target: Path) -> None:
    """The caller holds the lock of `target`."""
    made = target.with_name(f".{target.name}.new")
    shutil.rmtree(made, ignore_errors=True)  # of one that was killed
    made.mkdir()
    try:
        write_trimmed(folder, made, kept)
        _write_tokenizer(tokenizer, trimmed_content(content, kept), kept, made)
        for file in made.iterdir():  # safetensors lets only the owner read what it writes; others share the cache
            if not file.is_symlink():
                file.chmod((made / "config.json").stat().st_mode)
        sync_tree(made)
        rename_synced(made, target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _write_tokenizer(tokenizer: Any, content: dict[str, Any], kept: Sequence[int], folder: Path) -> None:
    """Raises DataError if what was written is not read as these tokens with these ids."""
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        if file.suffix in _LEFT_OUT or file.name in _ALSO:
            file.unlink()
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    new = {str(old): str(number) for number, old in enumerate(kept)}
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] = {new[k]: v for k, v in settings["added_tokens_decoder"].items()}
    settings_file.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    named = {number: token for token, number in tokenizer.get_vocab().items()}
    expected = {named.get(old): number for number, old in enumerate(kept)}
    if load_tokenizer(str(folder)).get_vocab() != expected:
        raise DataError(
            f"The tokenizer ({type(tokenizer).__name__}) gives other ids than its tokenizer.json, so that it cannot be "
            "trimmed. Leave student.vocabulary out."
        )
