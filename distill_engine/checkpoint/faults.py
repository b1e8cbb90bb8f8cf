"""Named places where a test can break the program on purpose.

The environment variable DISTILL_FAULT says where, as `name[@rank][#nth]`:

    in_part@1#2         SIGKILL rank 1 when it passes the point `in_part` for the second time
    enospc:in_part@1    there, and on every later pass, fail like a full disk instead (OSError ENOSPC)
    hang:in_step@1#2    there, wait for ever

Without `@rank` any rank is hit (its number is the environment variable RANK, 0 if unset); without `#nth` every pass.
Unset, a fault point costs one look at the environment.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections import Counter

VARIABLE = "DISTILL_FAULT"
POINTS = (
    "in_step",  # every rank, before it takes the data of an optimizer step
    "before_part",  # every rank, before each part writes
    "in_part",  # every rank, half of a file of a part is written
    "after_parts",  # every rank, its parts are written, other ranks may still write
    "in_manifest",  # rank 0, half of the manifest is written
    "before_rename",  # rank 0, everything is on disk under the temporary name
    "after_rename",  # rank 0, the checkpoint is complete, nothing is tidied up yet
    "before_pointer",  # rank 0, `latest` still names the one before, and is replaced next
    "in_prune",  # rank 0, an old checkpoint is renamed but not deleted
)
_SPECIFICATION = re.compile(r"(?P<kind>enospc:|hang:)?(?P<name>\w+)(?:@(?P<rank>\d+))?(?:#(?P<nth>\d+))?")
_passes: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Die by SIGKILL, hang or raise OSError here, if DISTILL_FAULT asks for it; otherwise nothing."""
    specification = os.environ.get(VARIABLE)
    if not specification:
        return
    fault = _SPECIFICATION.fullmatch(specification)
    if fault is None or fault["name"] not in POINTS:
        raise ValueError(f"{VARIABLE} is {specification!r}; use name[@rank][#nth], name one of {', '.join(POINTS)}.")
    _passes[name] += 1
    if name != fault["name"]:
        return
    if fault["rank"] and fault["rank"] != os.environ.get("RANK", "0"):
        return
    if fault["nth"] and int(fault["nth"]) != _passes[name]:
        return
    if fault["kind"] == "enospc:":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"(fault point {name})")
    if fault["kind"] == "hang:":
        _hang()
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    """Its name is what a stack of the hanging process shows."""
    while True:
        time.sleep(3600)
