"""What becomes of memory on the host that a step lets go."""

from __future__ import annotations

import ctypes
import os

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 30  # bytes of a block that is kept; older glibc takes no more than 32 MiB
_USERS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep blocks of up to 1 GiB that it frees for the next ones; returns whether it does.

    glibc gives blocks above 32 MiB back to the system at once, and smaller ones when they lie at the end. A training
    step on a CPU asks for the same tensors as the last, and the system hands out pages one by one, zeroed: 45,000 of
    them, 7 % of a step of benchmarks/step.py's `parlai_cpu`. No more memory is used at a time, it is kept in between.
    Whoever has set one of glibc's variables for it keeps his choice; other C libraries have none.
    """
    if any(name in os.environ for name in _USERS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: there is no such library on Windows
        return False
    kept = any(mallopt(_MMAP_THRESHOLD, size) for size in (_LARGEST, 32 << 20))
    return kept and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
