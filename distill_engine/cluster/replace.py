"""The one way in which small text files are replaced."""

from __future__ import annotations

from pathlib import Path


def replace_text(file: Path, text: str) -> None:
    """Write a file in one step: whoever reads it, or dies in the middle, leaves the old one or the new one.

    Raises OSError. Not forced to the disk, as parts of checkpoints are (checkpoint/files.py).
    """
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)
