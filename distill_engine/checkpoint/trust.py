"""What a checkpoint must pass before anything in it is unpickled: a pickle is a program.

DeepSpeed loads its shards without restriction. So nobody else may be able to write to a checkpoint, and each of its
pickles is first read by torch's restricted unpickler, which runs nothing and knows only the classes it is told.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import torch

from distill_engine.checkpoint.manifest import RefusedCheckpoint

ZIP_START = b"PK\x03\x04"
REASON_CHARACTERS = 200
_MET = re.compile(r"Unsupported global: GLOBAL \S+|unsupported GLOBAL \S+|Unsupported operand \d+")


def _tree(folder: Path) -> Iterator[Path]:
    yield folder.parent
    yield folder
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            yield Path(parent, name)


def refuse_foreign(folder: Path) -> None:
    """RefusedCheckpoint if a checkpoint, anything in it, or the folder it lies in is not this user's alone to write.

    That is: belongs to another user (root may read only its own), or can be written by everybody.
    """
    me = os.geteuid()
    for path in _tree(folder):
        try:
            facts = path.lstat()
        except FileNotFoundError:  # a listing may be older than what it lists; what comes into sight is looked at then
            continue
        if facts.st_uid != me:
            raise RefusedCheckpoint(
                f"{path} belongs to user {facts.st_uid}, this run to user {me}. Loading a checkpoint runs what is in "
                "it, so it must be your own. If you trust it, copy the folder; otherwise remove it."
            )
        if facts.st_mode & stat.S_IWOTH and not stat.S_ISLNK(facts.st_mode):
            raise RefusedCheckpoint(
                f"{path} can be written by every user (mode {stat.S_IMODE(facts.st_mode):o}). Loading a checkpoint "
                f"runs what is in it, so only you may write it. If you trust it: chmod -R o-w {folder.parent}"
            )


def scan_pickles(folder: Path, allowed: Collection[Callable[..., object]], names: Iterable[str] | None = None) -> int:
    """Read every `*.pt` below `folder`, or those of `names`, without running anything in it; how many there were.

    allowed: classes and functions that the pickles may name beside torch's own safe ones.
    RefusedCheckpoint names the first file that asks for more or is no readable torch file.
    """
    files = folder.rglob("*") if names is None else (folder / name for name in names)
    paths = sorted(path for path in files if path.suffix == ".pt")
    with torch.serialization.safe_globals(list(allowed)):
        for path in paths:
            _scan(path)
    return len(paths)


def _scan(path: Path) -> None:
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_START)) == ZIP_START
        # Mapped, not read: the restricted unpickler sees the structure, the numbers stay on disk.
        torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # the unpickler raises whatever a crafted file makes it raise
        raise RefusedCheckpoint(
            f"{path} was not loaded: it is not a file that this program writes ({_refusal(error)}). If you did not "
            "expect this, somebody else may have written it: remove the checkpoint's folder."
        ) from error


def _refusal(error: Exception) -> str:
    """What the unpickler met, without torch's advice to load the file without restriction."""
    text = str(error)
    if met := _MET.search(text):
        return met[0]
    if "weights_only" in text or not text:
        return type(error).__name__
    return " ".join(text.split())[:REASON_CHARACTERS]
