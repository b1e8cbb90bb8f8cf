"""Who forms the products of a projected comparison on a GPU: our kernels, or PyTorch's library (cuBLAS). By count.

    kernels  four products, since p is formed again in the backward pass; nothing is kept, p never leaves the registers
    library  three, each as fast as the vendor makes it (also where W has few tiles: it splits the tokens as well), with
             p, then G, in 32 bits in memory from the forward to the backward pass

Rates are an H100's in half precision, as published for large products and copies; they are not measured here.
"""

from __future__ import annotations

from typing import Literal

Way = Literal["kernels", "library"]

KERNEL_FLOP, LIBRARY_FLOP, BYTES = 600e12, 800e12, 3.35e12  # per second
# of one element of p: written, read beside the teacher's, G written over it and read, its half-precision form written
LIBRARY_BYTES = 4 + 4 + 2 + 4 + 4 + 2
WORTH = 0.8  # of the kernels' time: less of a gain does not pay for the memory


def seconds(way: Way, tokens: int, depth: int, width: int) -> float:
    """Forward and backward pass of [tokens, depth] -> [tokens, width]."""
    flop = 2.0 * tokens * depth * width
    if way == "kernels":
        return 4 * flop / KERNEL_FLOP
    return 3 * flop / LIBRARY_FLOP + tokens * width * LIBRARY_BYTES / BYTES


def faster_way(tokens: int, depth: int, width: int) -> Way:
    """For half precision; float32 products run on no tensor core, and memory is what counts there."""
    library, kernels = (seconds(way, tokens, depth, width) for way in ("library", "kernels"))
    return "library" if library < WORTH * kernels else "kernels"
