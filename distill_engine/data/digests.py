"""Digests of files, remembered for as long as the file stays as it is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from distill_engine.cluster.files import replace_text, sha256_of

# A file that changed this lately may change again without its times telling (clocks of file systems tick coarsely).
_SETTLED_SECONDS = 2.0


class FileDigests:
    """sha256 of files. What was computed is kept in `folder` and believed while the file's size, inode and both of its
    times are the same, so that a corpus of many gigabytes is not read whole at every start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, path: Path) -> str:
        """Hexadecimal sha256 of a file. Raises OSError when it cannot be read; a memory that fails does no harm."""
        before = _state(path)
        note = self._note(path)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            known = json.loads(note.read_text(encoding="utf-8"))
            if known["state"] == before:
                return str(known["sha256"])
        digest = sha256_of(path)
        settled = max(path.stat().st_mtime, path.stat().st_ctime) < time.time() - _SETTLED_SECONDS
        if settled and _state(path) == before:
            self.remember(path, digest)
        return digest

    def remember(self, path: Path, digest: str) -> None:
        """Believe this digest of a file until it changes."""
        note = self._note(path)
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_text(note, json.dumps({"state": _state(path), "sha256": digest, "path": str(path)}))

    def _note(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        return self._folder / f"{name}.json"


def _state(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns]
