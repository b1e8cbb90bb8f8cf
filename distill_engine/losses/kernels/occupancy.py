"""How many registers a thread of a kernel may take, so that a multiprocessor holds enough blocks to hide its loads."""

from __future__ import annotations

from functools import lru_cache

import torch

REGISTERS = 65536  # of one multiprocessor
BLOCKS = 2  # while one waits for memory or its tensor cores, the other one works
THREADS_PER_WARP = 32
MOST_REGISTERS = 255  # of one thread


def register_limit(capability: tuple[int, int], num_warps: int) -> dict[str, int]:
    """The launch option that leaves room for two blocks, where the compiler would take more and can do with less.

    Compute capability 9 alone: its tensor cores read factors from shared memory. Earlier ones want them in registers
    and would spill; later ones keep their results in a memory of their own.
    """
    most = REGISTERS // (BLOCKS * THREADS_PER_WARP * num_warps)
    return {"maxnreg": most} if capability[0] == 9 and most < MOST_REGISTERS else {}


@lru_cache(maxsize=64)
def register_limit_on(device: torch.device, num_warps: int) -> dict[str, int]:
    """The same for a tensor's device; nothing for a CPU, where kernels are interpreted."""
    if device.type != "cuda":
        return {}
    return register_limit(torch.cuda.get_device_capability(device), num_warps)
