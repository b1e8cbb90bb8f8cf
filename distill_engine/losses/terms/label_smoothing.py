"""Cross-entropy with the uniform distribution: beside the task it smooths the labels (Szegedy et al. 2016).

`task: 0.9` and `label_smoothing: 0.1` are cross-entropy with labels smoothed by 0.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_engine.losses.terms.protocol import Comparison, Counts, Layers, Operand, Term
from distill_engine.values import Batch, FeatureRequest, Features

if TYPE_CHECKING:
    from torch import Tensor


class LabelSmoothing(Term):
    """The mean of -log p(id) over all ids that may be predicted, summed over label tokens."""

    name, weight = "label_smoothing", "label_smoothing"
    meaning = "cross-entropy with the uniform distribution; with the task weighed 1 - e and this e, labels are smoothed"
    operand: Operand = "logits"
    distils = False
    proposed = False

    def needs(self, _layers: Layers) -> FeatureRequest:
        """The logits' factors: no further pass over the vocabulary."""
        return FeatureRequest(logits=False, head=True)

    def sum(self, student: Features, _teacher: Features, batch: Batch, kernels: Comparison) -> Tensor:
        """[] (see Term): the task's sum, and how far each label's logit lies above the mean logit, h (w[label] - w)."""
        from torch.nn.functional import embedding

        head, counted = student.head, batch.label_mask
        assert head is not None
        hidden = head.hidden.masked_fill(~counted[..., None], 0.0).float()  # anything may stand at padding
        labels = batch.labels.masked_fill(~counted, 0)
        mean = _mean(head.embedding, head.masked_id)
        above = (hidden * (embedding(labels, head.embedding).float() - mean)).sum(dim=-1)
        if head.bias is not None:
            above = above + (head.bias[labels].float() - _mean(head.bias, head.masked_id))
        return kernels.vocabulary.task + above.masked_fill(~counted, 0.0).sum()

    def count(self, counts: Counts) -> Tensor:
        """Label tokens."""
        return counts.labels


def _mean(rows: Tensor, masked_id: int | None) -> Tensor:
    """float32 mean over ids that may be predicted; [V, D] -> [D]."""
    import torch

    total, ids = rows.sum(dim=0, dtype=torch.float32), len(rows)
    return total / ids if masked_id is None else (total - rows[masked_id].float()) / (ids - 1)


LABEL_SMOOTHING = LabelSmoothing()
