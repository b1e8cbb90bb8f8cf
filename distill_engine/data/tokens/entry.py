"""One tokenised dataset as a folder: written piece by piece, checked when opened, memory-mapped.

entry.json   sizes and facts, the sha256 of both arrays, and the sha256 of all that
tokens.bin   [N] int32, little endian: TokenisedDataset.tokens
bounds.bin   [examples, 4] int64, little endian: TokenisedDataset.bounds
notes.bin    [bytes] uint8, and note_ends.bin [examples] int64: TokenisedDataset.notes, of data that has some
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_engine.cluster.files import digest_of, sync_folder
from distill_engine.data.digests import FileDigests
from distill_engine.data.tokens.entries import EntryError, UnwritableError
from distill_engine.data.tokens.tokenised import Notes, TokenFacts, TokenisedDataset, combined_digest, episodes_in
from distill_engine.data.tokens.tokenize import DialogueTokenizer, TokenChunk

TOKENS, BOUNDS, FACTS = "tokens.bin", "bounds.bin", "entry.json"
NOTES, NOTE_ENDS = "notes.bin", "note_ends.bin"
_TOKEN, _BOUND, _LETTER = np.dtype("<i4"), np.dtype("<i8"), np.dtype("u1")


def write_entry(
    folder: Path, chunks: Iterable[TokenChunk], progress: Callable[[int], None], left_out: Sequence[str] = ()
) -> dict[str, str]:
    """Fill a new, empty folder, forced to the disk; no more than one chunk is in memory. Returns its files' sha256.

    left_out  see TokenisedDataset; looked at when all chunks are there

    Raises UnwritableError; what making the chunks raises goes through.
    """
    tokens, bounds = ArrayFile(folder / TOKENS, _TOKEN), ArrayFile(folder / BOUNDS, _BOUND)
    notes, ends = ArrayFile(folder / NOTES, _LETTER), ArrayFile(folder / NOTE_ENDS, _BOUND)
    episodes = skipped = largest = 0
    with closing(tokens), closing(bounds), closing(notes), closing(ends):
        for chunk in chunks:
            for note in chunk.notes:
                notes.append(np.frombuffer(note.encode(), np.uint8))
                ends.append(np.array([notes.count]))
            tokens.append(chunk.tokens)
            bounds.append(chunk.bounds)
            episodes += episodes_in(chunk.bounds)  # chunks hold whole episodes
            skipped += chunk.skipped
            largest = max(largest, int(chunk.tokens.max(initial=0)))
            progress(chunk.episodes)
    made = {TOKENS: tokens.digest, BOUNDS: bounds.digest}
    noted = [notes.digest + ends.digest] if ends.count else []
    facts = TokenFacts(episodes, largest, combined_digest(*made.values(), *noted))
    if noted:
        made |= {NOTES: notes.digest, NOTE_ENDS: ends.digest}
    content = {
        "tokens": tokens.count,
        "bounds": bounds.count,
        "sha256": made,
        "skipped": skipped,
        "facts": asdict(facts),
        "notes": notes.count,
        "left_out": list(left_out),
    }
    try:
        if not noted:
            notes.path.unlink()
            ends.path.unlink()
        write_synced(folder / FACTS, json.dumps({"content": content, "sha256": digest_of(content)}).encode())
        sync_folder(folder)
    except OSError as error:
        raise UnwritableError(str(error)) from error
    return made


def open_entry(folder: Path, encoder: DialogueTokenizer, digests: FileDigests) -> TokenisedDataset:
    """The dataset in an entry's folder, its arrays memory-mapped.

    Raises EntryError when anything in it is not as it was written.
    """
    try:
        record = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        content = record["content"]
        if record["sha256"] != digest_of(content):
            raise EntryError(f"{FACTS} is not as it was written")
        for name, digest in content["sha256"].items():
            if digests.of(folder / name) != digest:
                raise EntryError(f"{name} is not as it was written")
        tokens = mapped(folder / TOKENS, _TOKEN, (content["tokens"],))
        bounds = mapped(folder / BOUNDS, _BOUND, (content["bounds"] // 4, 4))
        count, notes = content.get("notes", 0), None
        if count:
            text = mapped(folder / NOTES, _LETTER, (count,))
            notes = Notes.after(text, mapped(folder / NOTE_ENDS, _BOUND, (len(bounds),)))
        dataset = encoder.dataset(tokens, bounds, content["skipped"], TokenFacts(**content["facts"]), notes)
        return replace(dataset, left_out=tuple(map(str, content.get("left_out", ()))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EntryError(f"{type(error).__name__}: {error}") from error


class ArrayFile:
    """An array written one piece after the other, and its digest."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.count = 0
        self._dtype = dtype
        self._sha256 = hashlib.sha256()
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise UnwritableError(str(error)) from error

    def append(self, array: NDArray[Any]) -> None:
        """Add to the end. Raises UnwritableError."""
        piece = np.ascontiguousarray(array, self._dtype)
        self._sha256.update(piece.data)
        self.count += piece.size
        try:
            self._file.write(piece.data)
        except OSError as error:
            raise UnwritableError(f"{self.path}: {error}") from error

    @property
    def digest(self) -> str:
        """sha256 of all that was added."""
        return self._sha256.hexdigest()

    def close(self) -> None:
        """Force it to the disk. Raises UnwritableError."""
        try:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UnwritableError(f"{self.path}: {error}") from error


def mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A file's array, memory-mapped."""
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", shape=shape))  # a plain view: memmap's own indexing is slower


def write_synced(path: Path, content: bytes) -> None:
    """A small file, forced to the disk. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
