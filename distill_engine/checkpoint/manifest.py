"""The manifest of a checkpoint: what is in it, for which run, and a digest of every file and of itself.

A folder without a manifest that verifies is not a checkpoint, whatever its name says.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill_engine.checkpoint.files import late_files, protect, write_file
from distill_engine.cluster.files import digest_of, sha256_of

MANIFEST = "manifest.json"
VERSION = 1
_WRITER = re.compile(r"rank_(\d+)")


class CheckpointError(ValueError):
    """Resuming or saving cannot go on, and a person has to decide. The text says what is wrong and what to do."""


class RefusedCheckpoint(CheckpointError):
    """A checkpoint that this run must not take up, whole as it is: another one's, or not safe to load."""


class BadCheckpoint(Exception):
    """A checkpoint folder that must not be loaded, with the reason; the one before it may be good."""


@dataclass(frozen=True)
class FileFacts:
    """One file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself.

    step        applied optimizer steps
    world_size  ranks that wrote it
    identity    what must be equal for a run to go on from here (flat, JSON values)
    parts       names of the parts, each a sub-folder
    files       path below the checkpoint folder, with forward slashes -> facts
    value       what the metric that decides about the best was at this very step; None if it was not validated then
    """

    step: int
    world_size: int
    identity: dict[str, Any]
    parts: tuple[str, ...]
    files: Mapping[str, FileFacts]
    value: float | None = None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, with a digest over its own fields, and force it to the disk."""
    fields = {"version": VERSION, **asdict(manifest)}
    text = json.dumps({**fields, "sha256": digest_of(fields)}, indent=1, sort_keys=True)
    write_file(folder / MANIFEST, text.encode(), fault="in_manifest")
    protect(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest; BadCheckpoint if it is missing, damaged or of another version."""
    try:
        fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        written_digest = fields.pop("sha256")
        version = fields.pop("version")
    except FileNotFoundError:
        raise BadCheckpoint(f"it has no {MANIFEST}: it was never completed") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadCheckpoint(f"its {MANIFEST} cannot be read ({error})") from error
    if version != VERSION:
        raise BadCheckpoint(f"its {MANIFEST} has version {version}, this program reads version {VERSION}")
    if written_digest != digest_of({"version": version, **fields}):
        raise BadCheckpoint(f"its {MANIFEST} differs from its own digest: it was changed or damaged")
    try:
        files = {name: FileFacts(**facts) for name, facts in fields["files"].items()}
        return Manifest(**{**fields, "parts": tuple(fields["parts"]), "files": files})
    except (KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"its {MANIFEST} lacks or has too many fields ({error})") from error


def writer_of(name: str, world_size: int) -> int:
    """The rank that a file is of, told by its name. A wrong guess costs speed, not safety."""
    named = _WRITER.search(name)
    return int(named[1]) % world_size if named else 0


def list_files(folder: Path, wanted: Callable[[str], bool] = lambda _name: True) -> dict[str, Path]:
    """The `wanted` files of a checkpoint, never its manifest, by their path below it.

    Hidden files are left out (network file systems make them, nothing loads them). BadCheckpoint if something is
    neither a folder nor a regular file: a link could lead to anything.
    """
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent, name)
            below = path.relative_to(folder).as_posix()
            if name in names and not wanted(below):
                continue
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # a listing may be older than what it lists
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise BadCheckpoint(f"{below} is not a regular file")
            if stat.S_ISREG(mode) and not name.startswith("."):
                found[below] = path
    found.pop(MANIFEST, None)
    return found


def digest_written(path: Path) -> FileFacts:
    """Force a file that was just written to the disk and take its facts. Nobody else may write to it from now on."""
    protect(path)
    return FileFacts(path.stat().st_size, sha256_of(path, sync=True))


def see_files(folder: Path, manifest: Manifest, names: Iterable[str], seconds: float, *, fresh: bool = False) -> None:
    """Look so many seconds for files of a checkpoint until they are seen from here; BadCheckpoint if one is not, or
    not in its size. `fresh`: just written, by other nodes too, so that their sizes may be late as well."""
    sizes = {folder / name: manifest.files[name].bytes for name in sorted(names)}
    late_files({path: size if fresh else None for path, size in sizes.items()}, seconds)
    for path, written in sizes.items():
        name = path.relative_to(folder).as_posix()
        try:
            size = path.lstat().st_size
        except FileNotFoundError:
            raise BadCheckpoint(f"{name} is missing") from None
        if size != written:
            raise BadCheckpoint(f"{name} has {size} bytes, {written} were written: it is truncated or changed")


def refuse_others(folder: Path, manifest: Manifest) -> None:
    """BadCheckpoint if a file is there that the manifest does not name, or something that is no file."""
    for name in sorted(list_files(folder).keys() - manifest.files.keys()):
        raise BadCheckpoint(f"{name} is not in its {MANIFEST}")


def verify_digests(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Read files of a checkpoint; BadCheckpoint names the first that is not what was written."""
    for name in names:
        if sha256_of(folder / name) != manifest.files[name].sha256:
            raise BadCheckpoint(f"{name} differs from its digest: it was changed or damaged")
