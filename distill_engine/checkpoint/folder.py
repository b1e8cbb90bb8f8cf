"""The folder of checkpoints as one process sees it: names, the newest that verifies, completing, deleting.

    .tmp-step-00000123/     being written; means nothing
        <part>/...          one sub-folder per part
        manifest.json       written last: step, world size, identity, size and SHA-256 of every file
    step-00000123/          the same folder, renamed: complete
    step-00000123.1/        saved again at the same step; newer than the one without a number
    .trash-step-00000100/   being deleted; means nothing
    latest                  name of the newest, for people; never read by the program

Newest means the highest step in the name, never the latest time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from distill_engine.checkpoint.faults import fault_point
from distill_engine.checkpoint.files import (
    CHECKPOINT_NAME,
    LATE_SECONDS,
    free_bytes,
    free_files,
    protect,
    readable_bytes,
    remove_tree,
    write_failure,
)
from distill_engine.checkpoint.manifest import (
    BadCheckpoint,
    Manifest,
    read_manifest,
    refuse_others,
    see_files,
    write_manifest,
)
from distill_engine.checkpoint.retention import Retention, Saved
from distill_engine.checkpoint.trust import refuse_foreign
from distill_engine.cluster.files import rename_synced, replacing, sync_folder

TEMPORARY = ".tmp-"
TRASH = ".trash-"
POINTER = "latest"
SPACE_MARGIN = 1.1  # times the bytes of the last checkpoint must be free


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint whose every file was compared with its digest."""

    folder: Path
    step: int
    world_size: int
    identity: dict[str, Any]
    parts: tuple[str, ...]
    bytes: int
    files: tuple[str, ...]


class CheckpointFolder:
    """What rank 0 does with the checkpoints on disk. Knows nothing of other ranks.

    keep     which complete checkpoints `tidy` leaves
    patience seconds in which files of other nodes must come into sight
    """

    def __init__(self, path: Path, *, keep: Retention, patience: float = LATE_SECONDS) -> None:
        self.path = path
        self.patience = patience
        self._keep = keep
        self._rejected: set[str] = set()
        self._last: Manifest | None = None

    def prepare(self, temporary: Path, parts: Iterable[str]) -> None:
        """Make an empty temporary folder with one folder per part. OSError also when it is foreseeably too big."""
        self.path.mkdir(parents=True, exist_ok=True)
        protect(self.path)
        remove_tree(temporary)
        self._refuse_too_little_space()
        temporary.mkdir()
        for name in parts:
            (temporary / name).mkdir()

    def _refuse_too_little_space(self) -> None:
        """Every save needs about as much as the one before, beside it: old ones are deleted afterwards."""
        if self._last is None:
            return
        took, left = _total_bytes(self._last), free_bytes(self.path)
        if left < took * SPACE_MARGIN:
            needed = f"the last checkpoint took {readable_bytes(took)}, {readable_bytes(left)} are free"
            raise OSError(errno.ENOSPC, needed)
        made, can_be_made = _total_entries(self._last), free_files(self.path)
        if can_be_made is not None and can_be_made < made:
            needed = f"the last checkpoint has {made} files and folders, {can_be_made} more can be made"
            raise OSError(errno.ENOSPC, needed)

    def commit(self, temporary: Path, manifest: Manifest) -> str:
        """Turn a fully written temporary folder into a checkpoint; its name. OSError leaves it temporary."""
        try:
            see_files(temporary, manifest, manifest.files, self.patience, fresh=True)
            refuse_others(temporary, manifest)
        except BadCheckpoint as bad:
            where = f"as rank 0 sees it, and has seen it for {self.patience:g} s"
            raise OSError(errno.ESTALE, f"{bad} ({where}): is the folder shared by all ranks?") from bad
        write_manifest(temporary, manifest)
        for parent, _, _ in os.walk(temporary):
            protect(Path(parent))
            sync_folder(Path(parent))
        name = self._free_name(manifest.step)
        fault_point("before_rename")
        rename_synced(temporary, self.path / name)
        fault_point("after_rename")
        self._last = manifest
        return name

    def tidy(self, new: str) -> str | None:
        """Point `latest` at the new checkpoint and delete old ones. The new one is safe already: a failure is no error,
        but a line for people. May run in any thread, before the next `prepare`."""
        try:
            fault_point("before_pointer")
            with replacing(self.path / POINTER, sync=True) as pointer:
                pointer.write(f"{new}\n")
                protect(Path(pointer.name))  # before it has its name
            self._prune(new)
        except Exception as error:
            reason = write_failure(error, self.path)
            return f"Checkpoint {new} is complete, but tidying up after it failed: {reason}"
        return None

    def claimed(self, name: str) -> Manifest:
        """What a checkpoint says of itself, if names and sizes of its files agree; what is in them is not looked at.

        BadCheckpoint with the reason if not; CheckpointError if somebody else could have written it.
        """
        folder = self.path / name
        refuse_foreign(folder)
        manifest = read_manifest(folder)
        if manifest.step != _order(name)[0]:
            raise BadCheckpoint(f"it is of step {manifest.step}: it was renamed")
        refuse_others(folder, manifest)
        see_files(folder, manifest, manifest.files, self.patience)
        refuse_foreign(folder)  # what was late as well
        return manifest

    def accept(self, name: str, manifest: Manifest) -> CheckpointInfo:
        """The run goes on from this one."""
        self._last = manifest
        return CheckpointInfo(
            self.path / name,
            manifest.step,
            manifest.world_size,
            manifest.identity,
            manifest.parts,
            _total_bytes(manifest),
            tuple(manifest.files),
        )

    def reject(self, name: str) -> None:
        """This one did not verify: it goes with the next `tidy`."""
        self._rejected.add(name)

    def names(self) -> list[str]:
        """Folders that claim to be complete, newest first."""
        if not self.path.is_dir():
            return []
        names = [path.name for path in self.path.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)]
        return sorted(names, key=_order, reverse=True)

    def newest_manifest(self) -> Manifest | None:
        """What the newest checkpoint with a readable manifest says of itself; its files are not looked at."""
        for name in self.names():
            try:
                return read_manifest(self.path / name)
            except BadCheckpoint:
                continue
        return None

    def remove_leftovers(self) -> None:
        """Delete what a killed run left half-written or half-deleted."""
        for pattern in (f"{TEMPORARY}*", f"{TRASH}*", f".{POINTER}.*"):
            for path in self.path.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    remove_tree(path)
                else:
                    path.unlink(missing_ok=True)

    def _prune(self, new: str) -> None:
        """Keep the new one and what the rules name; what did not verify at the start goes, and counts for none."""
        names = self.names()
        good = [self._saved(name) for name in names if name not in self._rejected]
        kept = self._keep.kept(good) | {new}
        for name in names:
            if name not in kept:
                trash = self.path / f"{TRASH}{name}"
                remove_tree(trash)
                (self.path / name).rename(trash)
                fault_point("in_prune")
                remove_tree(trash)

    def _saved(self, name: str) -> Saved:
        try:
            value = read_manifest(self.path / name).value
        except BadCheckpoint:  # since the start; the newest rules judge it by its name alone
            value = None
        return Saved(*_order(name), name, value)

    def _free_name(self, step: int) -> str:
        again = [_order(name)[1] for name in self.names() if _order(name)[0] == step]
        return f"step-{step:08d}" + (f".{max(again) + 1}" if again else "")


def _order(name: str) -> tuple[int, int]:
    """Step, and how often it was saved again. Only for names that match."""
    named = CHECKPOINT_NAME.fullmatch(name)
    assert named is not None, name
    return int(named["step"]), int(named["again"] or 0)


def _total_bytes(manifest: Manifest) -> int:
    return sum(facts.bytes for facts in manifest.files.values())


def _total_entries(manifest: Manifest) -> int:
    """Files and folders, the manifest and the checkpoint's own folder among them."""
    folders = {parent for name in manifest.files for parent in PurePosixPath(name).parents}
    return len(manifest.files) + len(folders | {PurePosixPath(part) for part in manifest.parts}) + 1
