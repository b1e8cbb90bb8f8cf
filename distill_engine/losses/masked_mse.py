"""Mean squared error of hidden vectors at unmasked tokens: encoder output, embeddings, layer outputs.

    term = sum over unmasked tokens of mean over D of clamp((s - t)^2, max)        (ParlAI, DistilBERT/TinyBERT agents)

The caller divides by a token count. Clamped elements have zero gradient. The arithmetic is float32 whatever the
inputs are, so the square of an fp16 difference cannot overflow before the clamp sees it.
"""

from __future__ import annotations

from torch import Tensor


def masked_mse_sum(student: Tensor, teacher: Tensor, mask: Tensor, clamp: float | None) -> Tensor:
    """Sum over unmasked tokens of the mean squared difference over the width.

    student, teacher  [B, L, D], same width, any float dtype
    mask              [B, L] bool, True where a token counts
    clamp             largest squared difference of one element, or None
    returns           [] float32
    """
    # A masked position may hold inf or nan. It is emptied before the square, whose derivative there would otherwise
    # be 0 * inf = nan.
    difference = (student.float() - teacher.float()).masked_fill_(~mask[..., None], 0.0)  # [B, L, D]
    squared = difference.square()
    if clamp is not None:
        squared = squared.clamp(max=clamp)
    return squared.mean(dim=-1).sum()
