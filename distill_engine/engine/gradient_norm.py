"""The gradient's norm and whether it is finite, read by the host once in an optimizer step.

DeepSpeed reads them one after the other: a flag of overflow, a flag of the norm, the same again for each group of
parameters that is clipped. Each is a wait until the device has caught up. A norm in 32 bits is finite exactly when
every element of the gradient is, so one number answers all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor


def read_once(optimizer: Any) -> None:
    """Let a ZeRO-2 optimizer of DeepSpeed find its gradient norm by one reduction and one read.

    With gradients offloaded to the host DeepSpeed's own way stays: those norms are made there, tensor by tensor.
    """
    if optimizer.cpu_offload:
        return

    def norm(norm_type: float = 2) -> float:
        """Global and still scaled; what is not finite makes DeepSpeed skip the step."""
        assert norm_type == 2, norm_type
        return _norm(optimizer)

    def clip(gradients: Sequence[Tensor], total_norm: float) -> None:
        """Divide by the loss scale, and by as much as the norm exceeds the limit."""
        scale = float(optimizer.loss_scale)
        if optimizer.clip_grad > 0:
            scale *= max(1.0, (total_norm / scale + 1e-6) / optimizer.clip_grad)
        if scale != 1.0:
            for gradient in gradients:
                gradient.mul_(1.0 / scale)

    optimizer.check_overflow = lambda **_: None  # the norm tells
    optimizer.scaled_global_norm = norm
    optimizer.unscale_and_clip_grads = clip


def _norm(optimizer: Any) -> float:
    groups = optimizer.averaged_gradients.values()
    parts = [gradient for group in groups for gradient in group or () if gradient.numel()]
    squares = torch.zeros((), device=optimizer.device)
    if parts:
        squares = torch.stack(torch._foreach_norm(parts, 2, torch.float32)).square().sum()
    dist.all_reduce(squares, group=optimizer.dp_process_group)
    return math.sqrt(squares.item())
