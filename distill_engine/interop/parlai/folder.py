"""A new folder that is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill_engine.interop.parlai.options.errors import ParlaiError


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`; it takes that name when the block ends well, else it is removed.

    Raises ParlaiError if the target exists or its parent cannot be written.
    """
    if target.exists() or target.is_symlink():
        raise ParlaiError(f"{target} exists already. Nothing is overwritten. Give a new folder, or remove it first.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ParlaiError(
            f"{target} cannot be made: {error.strerror}. The folder above it has to be writable. Give another place."
        ) from error
    try:
        yield unfinished
        _open_up(unfinished)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _open_up(folder: Path) -> None:
    """Permissions as the umask gives them: temporary folders and safetensors files are the owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)
