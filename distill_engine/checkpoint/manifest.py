"""The manifest of a checkpoint: what is in it, for which run, and a digest of every file and of itself.

A folder without a manifest that verifies is not a checkpoint, whatever its name says.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill_engine.checkpoint.files import protect, sha256_of, write_file

MANIFEST = "manifest.json"
VERSION = 1


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


def _digest_of_fields(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, with a digest over its own fields, and force it to the disk."""
    fields = {"version": VERSION, **asdict(manifest)}
    text = json.dumps({**fields, "sha256": _digest_of_fields(fields)}, indent=1, sort_keys=True)
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
    if written_digest != _digest_of_fields({"version": version, **fields}):
        raise BadCheckpoint(f"its {MANIFEST} differs from its own digest: it was changed or damaged")
    try:
        files = {name: FileFacts(**facts) for name, facts in fields["files"].items()}
        return Manifest(**{**fields, "parts": tuple(fields["parts"]), "files": files})
    except (KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"its {MANIFEST} lacks or has too many fields ({error})") from error


def list_files(folder: Path) -> dict[str, Path]:
    """All files of a checkpoint but its manifest, by their path below it.

    Hidden files are left out (network file systems make them, nothing loads them). BadCheckpoint if something is
    neither a folder nor a regular file: a link could lead to anything.
    """
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise BadCheckpoint(f"{path.relative_to(folder)} is not a regular file")
        for name in names:
            if not name.startswith("."):
                path = Path(parent, name)
                found[path.relative_to(folder).as_posix()] = path
    found.pop(MANIFEST, None)
    return found


def digest_written(path: Path) -> FileFacts:
    """Force a file that was just written to the disk and take its facts. Nobody else may write to it from now on."""
    protect(path)
    return FileFacts(path.stat().st_size, sha256_of(path, sync=True))


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest; BadCheckpoint names the first that is missing, extra or different."""
    present = list_files(folder)
    for name in sorted(manifest.files.keys() - present.keys()):
        raise BadCheckpoint(f"{name} is missing")
    for name in sorted(present.keys() - manifest.files.keys()):
        raise BadCheckpoint(f"{name} is not in its {MANIFEST}")
    for name, facts in manifest.files.items():
        size = present[name].stat().st_size
        if size != facts.bytes:
            raise BadCheckpoint(f"{name} has {size} bytes, {facts.bytes} were written: it is truncated or changed")
    for name, facts in manifest.files.items():
        if sha256_of(present[name]) != facts.sha256:
            raise BadCheckpoint(f"{name} differs from its digest: it was changed or damaged")
