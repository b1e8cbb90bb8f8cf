"""A dialogue dataset from its original archive into ParlAI's folder layout, whole or not at all.

    <root>/.fetch/<dataset>/  archive (what has arrived of it), lock, and the unpacked files while they are checked
    <root>/<folder>/           the dataset; `.fetched` in it says what its files are

Everything is prepared below `.fetch` and renamed into place. Files that somebody else put there are never replaced
without being asked to.
"""

from __future__ import annotations

import datetime
import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from distill_engine.cluster.files import sha256_of
from distill_engine.data.errors import shown
from distill_engine.data.fetch.archives import Archive
from distill_engine.data.fetch.download import FetchError, Progress, download
from distill_engine.data.fetch.unpack import unpack

MARKER = ".fetched"
_PARLAI_MARKER = ".built"


@dataclass(frozen=True)
class Fetched:
    """What came of it.

    folder     where the dataset is
    files      paths relative to it, markers left out
    was_there  nothing was done: the folder was complete
    """

    folder: Path
    files: tuple[str, ...]
    was_there: bool = False


@dataclass(frozen=True)
class Origin:
    """Where an archive comes from: an address, or a file on this machine (`copy`), and its checksum."""

    url: str
    sha256: str
    copy: Path | None = None


def fetch(
    archive: Archive,
    root: Path,
    origin: Origin | None = None,
    *,
    replace: bool = False,
    progress: Progress = lambda _done, _total: None,
    say: Callable[[str], None] = lambda _message: None,
    first_pause_s: float = 1.0,
) -> Fetched:
    """Download, check, unpack and put into place one dataset. A second call finds it done.

    origin    None: ParlAI's own address and checksum
    replace   also fetch what is there, and replace files that differ
    progress  bytes so far and in all, while downloading; `say` gets a line at each step
    Raises FetchError (or UnpackError) with nothing changed in the dataset's folder: another fetch of it is running, the
    archive cannot be had, its checksum is another, it lacks a file, it is damaged or hostile, it would replace files
    of another origin, the disk is full. A broken download is gone on with by the next call.
    """
    origin = origin or Origin(archive.url(), archive.sha256)
    folder = root.expanduser() / archive.folder
    if not replace and (known := _complete(archive, folder)) is not None:
        return Fetched(folder, known, was_there=True)
    try:
        with _workplace(root.expanduser(), archive) as work:
            file = _archive_file(archive, origin, work, progress, say, first_pause_s)
            say("unpacking")
            files = _put_into_place(archive, origin, file, work, folder, replace)
            shutil.rmtree(work)
    except OSError as error:
        place = error.filename or root
        raise FetchError(
            f"{place}: {error.strerror or error}. The dataset was not changed. Free some space, correct its "
            "permissions, or choose another --root."
        ) from error
    return Fetched(folder, tuple(files))


@contextmanager
def _workplace(root: Path, archive: Archive) -> Iterator[Path]:
    """The dataset's own folder below `.fetch`, held by this process alone."""
    work = root / ".fetch" / archive.dataset
    work.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work.parent / f"{archive.dataset}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FetchError(
            f"Another process fetches {archive.dataset} into {root} now. Two would disturb each other. Wait for it."
        ) from error
    try:
        work.mkdir(exist_ok=True)
        yield work
    finally:
        lock.release()


def _archive_file(
    archive: Archive, origin: Origin, work: Path, progress: Progress, say: Callable[[str], None], pause_s: float
) -> Path:
    """The archive, its checksum verified: one that is waiting here, a copy, or a download."""
    if origin.copy is not None:
        say("checking")
        _check(origin, origin.copy, str(origin.copy))
        return origin.copy
    whole, part = work / archive.name, work / f"{archive.name}.part"
    if whole.exists():
        if sha256_of(whole) == origin.sha256:
            return whole
        whole.unlink()
    say(f"downloading {origin.url}")
    continues = part.exists()
    download(origin.url, part, progress, pause_s)
    if continues and sha256_of(part) != origin.sha256:
        say("what an earlier attempt left does not fit: downloading all of it")
        part.unlink()
        download(origin.url, part, progress, pause_s)
    say("checking")
    try:
        _check(origin, part, origin.url)
    except FetchError:
        part.unlink()
        raise
    part.replace(whole)
    return whole


def _check(origin: Origin, file: Path, source: str) -> None:
    found = sha256_of(file)
    if found != origin.sha256:
        with file.open("rb") as start:
            begins = shown(start.read(24))
        raise FetchError(
            f"{source} is not the expected archive: its sha256 is {found}, expected is {origin.sha256}; "
            f"{file.stat().st_size} bytes that begin with {begins}. Nothing was unpacked. Try again, or name another "
            "mirror (--url-base, --url); an archive that you packed yourself needs --sha256."
        )


def _put_into_place(archive: Archive, origin: Origin, file: Path, work: Path, folder: Path, replace: bool) -> list[str]:
    stage = work / "unpacked"
    shutil.rmtree(stage, ignore_errors=True)  # of a fetch that was killed
    stage.mkdir()
    try:
        files = unpack(file, stage)
        lacking = [name for name in archive.files if name not in files]
        if lacking:
            raise FetchError(
                f"The archive of {archive.dataset} holds no {', '.join(lacking)} "
                f"but {', '.join(files[:8]) or 'nothing'}. It is another archive. Check its address."
            )
        _write_markers(archive, origin, stage, files)
        _move(stage, folder, files, replace)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return files


def _write_markers(archive: Archive, origin: Origin, stage: Path, files: list[str]) -> None:
    sizes = {name: (stage / name).stat().st_size for name in files if name not in (MARKER, _PARLAI_MARKER)}
    facts = {"dataset": archive.dataset, "from": origin.url, "sha256": origin.sha256, "files": sizes}
    (stage / MARKER).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if archive.marks_built:
        built = f"{datetime.datetime.now()}\n{archive.version}"
        (stage / _PARLAI_MARKER).write_text(built, encoding="utf-8")


def _move(stage: Path, folder: Path, files: list[str], replace: bool) -> None:
    """In one step where there is no such folder; file by file, the markers last, where there is one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        stage.rename(folder)
        return
    others = [name for name in files if _differs(stage / name, folder / name)]
    if others and not replace:
        raise FetchError(
            f"{folder} holds {', '.join(others[:8])} already, different from the archive's: changed, or left by a "
            "download that broke off. They are kept. Pass --replace to put the archive's files there."
        )
    for marker in (MARKER, _PARLAI_MARKER):
        (folder / marker).unlink(missing_ok=True)
    for name in [*files, MARKER, *([_PARLAI_MARKER] if (stage / _PARLAI_MARKER).exists() else [])]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).replace(folder / name)


def _differs(fresh: Path, there: Path) -> bool:
    return os.path.lexists(there) and not (there.is_file() and filecmp.cmp(fresh, there, shallow=False))


def _complete(archive: Archive, folder: Path) -> tuple[str, ...] | None:
    """The files of a folder that a marker of ours or of ParlAI's calls complete; None where none does."""
    try:
        facts = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        sizes = dict(facts["files"])
    except (OSError, ValueError, KeyError, TypeError):
        built = folder / _PARLAI_MARKER
        lines = built.read_text(encoding="utf-8", errors="replace").splitlines() if built.is_file() else []
        there = all((folder / name).is_file() for name in archive.files)
        return archive.files if there and lines[1:2] == [archive.version] else None
    whole = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
    return tuple(sizes) if whole and set(archive.files) <= set(sizes) else None
