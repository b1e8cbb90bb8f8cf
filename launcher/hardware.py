"""What a GPU and its links can do, from the makers' data sheets; for plans, not for measurements."""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    memory       bytes
    flops        16-bit matrix operations per second, without sparsity
    hbm          bytes per second of its own memory
    link         bytes per second to and from its neighbours in the node, one direction
    network      bytes per second to and from other nodes, one direction: the network card usually paired with it
    host         bytes per second to and from the host's memory, one direction: PCI Express with 16 lanes
    triton       whether the Triton kernels of the losses run on it (compute capability 8.0)
    host_memory  bytes per second of the host's memory that one of eight GPUs can count on: two sockets of today's kind
    """

    memory: float
    flops: float
    hbm: float
    link: float
    network: float
    host: float
    triton: bool = True
    host_memory: float = 50 * GB


GPUS: dict[str, Gpu] = {
    "h200": Gpu(141 * GB, 989e12, 4.8e12, 450 * GB, 50 * GB, 64 * GB),
    "h100": Gpu(80 * GB, 989e12, 3.35e12, 450 * GB, 50 * GB, 64 * GB),
    "a100": Gpu(80 * GB, 312e12, 2.0e12, 300 * GB, 25 * GB, 32 * GB),
    "a100-40": Gpu(40 * GB, 312e12, 1.55e12, 300 * GB, 25 * GB, 32 * GB),
    "l40s": Gpu(48 * GB, 362e12, 0.86e12, 25 * GB, 12.5 * GB, 32 * GB),
    "v100": Gpu(32 * GB, 125e12, 0.9e12, 150 * GB, 3.1 * GB, 16 * GB, triton=False, host_memory=20 * GB),
}
