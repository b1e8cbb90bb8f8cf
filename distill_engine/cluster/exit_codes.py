"""What the exit code of a run tells the launcher, and how it reaches one that loses codes."""

import os
from pathlib import Path

DONE = 0
FAILED = 1
STOPPED_AND_SAVED = 75  # asked to stop and checkpointed, or stood still: the same command again goes on
BAD_INPUT = 78  # recipe, configuration or data: starting again cannot help

VERDICT_VARIABLE = "DISTILL_VERDICT"


def leave_verdict(code: int) -> None:
    """Write a code into the file that DISTILL_VERDICT names, in one step; nothing when it names none.

    Launchers that end all ranks as soon as one has ended report their own signal instead of the code.
    A disk that takes no file leaves the launcher with what it saw itself.
    """
    name = os.environ.get(VERDICT_VARIABLE)
    if not name:
        return
    fresh = Path(f"{name}.{os.getpid()}")
    try:
        fresh.write_text(f"{code}\n", encoding="ascii")
        fresh.replace(name)
    except OSError:
        return


def read_verdict(path: Path) -> int | None:
    """The code that was left there; None when there is none, or no number."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None
