"""Features on disk: computed once for a content, then memory-mapped by every process of a machine.

    <folder>/features/<key>/   one entry, made once (data/tokens/entries.py)
        features.bin           [N, C] float16, little endian: the frames of all sounds, one after the other
        ends.bin               [examples] int64: where each one's frames end
        entry.json             sizes, and the sha256 of both

The silence that fills a window up is the same in all its frames and kept once: behind a sound's own frames. The key is
the content: where the sounds are, how long and when last changed, and the options of the feature extractor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill_engine.cluster.files import digest_of, sync_folder
from distill_engine.data.audio.clips import SpeechDataset
from distill_engine.data.digests import FileDigests
from distill_engine.data.tokens.entries import Entries, EntryError, UnwritableError
from distill_engine.data.tokens.entry import ArrayFile, mapped, write_synced

FEATURES, ENDS, FACTS = "features.bin", "ends.bin", "entry.json"
_HALF, _END = np.dtype("<f2"), np.dtype("<i8")
_FORMAT = 2
_TOGETHER = 32
_EDGE = 4  # frames behind the end of a sound that the extractor's window still hears, and one of the filling
_STATS = 8  # files at a time: a network's file system takes its time for each


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """See Stored. `frames`: of a window."""

    table: NDArray[np.float16]
    ends: NDArray[np.int64]
    frames: int

    @property
    def size(self) -> int:
        """See Stored."""
        return self.table.nbytes + self.ends.nbytes

    def features(self, index: int) -> NDArray[np.float32]:
        """[C, F] of an example; its last frame fills the window up."""
        begin = 0 if index == 0 else int(self.ends[index - 1])
        own = self.table[begin : int(self.ends[index])].astype(np.float32)
        whole = np.empty((self.table.shape[1], self.frames), np.float32)
        whole[:, : len(own)] = own.T
        whole[:, len(own) :] = own[-1][:, None]
        return whole


class FeatureCache:
    """Gives datasets whose features are read from the disk, and computes them where they are not there.

    A folder that cannot be written is no error: features are computed when they are asked for, and `say` is told.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._digests = FileDigests(folder / "digests")
        self._entries = Entries(folder, "features", say)
        self._say = say

    def stored(
        self, dataset: SpeechDataset, begin: Callable[[int], None], advance: Callable[[int], None]
    ) -> SpeechDataset:
        """The same with features on the disk.

        begin    is called with the bytes that they will take where they have to be computed; may raise UnwritableError
        advance  hears of so many more
        Raises DataError where a sound is not what it was.
        """
        assert dataset.notes is not None, "data of sounds has notes"
        sounds = [dataset.sounds.identity, dataset.notes.digest, _stamps(dataset)]
        facts = [_FORMAT, *sounds, dataset.frontend.identity]

        def write(folder: Path) -> dict[str, str]:
            begin(bytes_of(dataset))
            return _write(folder, dataset, advance)

        def opened(folder: Path) -> StoredFeatures:
            return _open(folder, dataset, self._digests)

        try:
            held = self._entries.made(digest_of(facts)[:32], dataset.source, opened, write, self._digests)
        except UnwritableError as error:
            self._say(
                f"{dataset.source}: features cannot be kept in {self._folder} ({error}); they are computed each time. "
                "data.cache_dir names another folder."
            )
            return dataset
        return replace(dataset, stored=held)


def bytes_of(dataset: SpeechDataset) -> int:
    """About what the features of a dataset take on the disk, by the lengths of its sounds; rather more than less."""
    frontend = dataset.frontend
    own = np.ceil(dataset.seconds / frontend.seconds * frontend.frames) + _EDGE
    frames = np.minimum(own, frontend.frames).sum()
    return int(frames) * frontend.channels * _HALF.itemsize + len(dataset) * _END.itemsize


def _stamps(dataset: SpeechDataset) -> str:
    """Digest of what tells that a sound was changed; files are looked at, not read."""
    places = (dataset.place(index).at for index in range(len(dataset)))
    with ThreadPoolExecutor(_STATS, thread_name_prefix="stamps") as pool:
        return digest_of(list(pool.map(dataset.sounds.stamp, places)))


def _write(folder: Path, dataset: SpeechDataset, advance: Callable[[int], None]) -> dict[str, str]:
    table, ends = ArrayFile(folder / FEATURES, _HALF), ArrayFile(folder / ENDS, _END)
    try:
        count = 0
        for features in _computed(dataset):
            own = _without_filling(features.astype(np.float16))
            count += own.shape[1]
            table.append(own.T)
            ends.append(np.array([count]))
            advance(1)
    finally:
        table.close()
        ends.close()
    made = {FEATURES: table.digest, ENDS: ends.digest}
    content = {"frames": count, "examples": len(dataset), "sha256": made}
    try:
        write_synced(folder / FACTS, json.dumps({"content": content, "sha256": digest_of(content)}).encode())
        sync_folder(folder)
    except OSError as error:
        raise UnwritableError(str(error)) from error
    return made


def _computed(dataset: SpeechDataset) -> Iterator[NDArray[np.float32]]:
    """Every example's features in order, some at a time."""

    def one(index: int) -> NDArray[np.float32]:
        clip = dataset.example(index).clip
        assert clip is not None
        return clip.features()

    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="features") as pool:
        for start in range(0, len(dataset), _TOGETHER):
            yield from pool.map(one, range(start, min(start + _TOGETHER, len(dataset))))


def _without_filling(features: NDArray[np.float16]) -> NDArray[np.float16]:
    """[C, at most F]: without the frames at the end that equal the last one, but for the first of those."""
    other = np.flatnonzero((features != features[:, -1:]).any(axis=0))
    return features[:, : (int(other[-1]) + 2 if len(other) else 1)]


def _open(folder: Path, dataset: SpeechDataset, digests: FileDigests) -> StoredFeatures:
    try:
        record = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        content = record["content"]
        if record["sha256"] != digest_of(content) or content["examples"] != len(dataset):
            raise EntryError(f"{FACTS} is not as it was written")
        for name, digest in content["sha256"].items():
            if digests.of(folder / name) != digest:
                raise EntryError(f"{name} is not as it was written")
        table = mapped(folder / FEATURES, _HALF, (content["frames"], dataset.frontend.channels))
        ends = mapped(folder / ENDS, _END, (content["examples"],))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EntryError(f"{type(error).__name__}: {error}") from error
    return StoredFeatures(table, ends, dataset.frontend.frames)
