"""Token metrics over a data set: sums per dataset, divided once those of all ranks are added up.

Names and meanings are ParlAI's: `ppl` is exp(summed token loss / label tokens) of one dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from distill_engine.metrics.named import POOLED, token_metrics
from distill_engine.metrics.protocol import Given
from distill_engine.metrics.scores import Scores

Average = Literal["macro", "micro"]


class Tally:
    """The sums of all metrics that what is given allows: [datasets, columns] float64, the first column label tokens."""

    def __init__(self, *given: Given) -> None:
        self.given = given
        self.metrics = tuple(metric for metric in token_metrics() if metric.needs in ("student", *given))
        self.columns = 1 + sum(metric.columns for metric in self.metrics)

    @torch.no_grad()
    def sums(self, scores: Scores, datasets: int) -> Tensor:
        """[datasets, columns] of one micro-batch. Raises ValueError for a metric with another number of sums than it
        says."""
        columns = [scores.tokens]
        for metric in self.metrics:
            own = metric.sums(scores)
            if len(own) != metric.columns:
                raise ValueError(f"metric {metric.name!r} says columns = {metric.columns}, but has {len(own)} sums.")
            columns += [one.double() for one in own]
        per_example = torch.stack(columns, dim=1)  # [B, columns]
        sums = torch.zeros(datasets, self.columns, dtype=torch.float64, device=per_example.device)
        return sums.index_add_(0, scores.batch.dataset_ids, per_example)

    def values(self, sums: Tensor, labels: Sequence[str], average: Average = "macro") -> dict[str, float]:
        """Named values of globally added [datasets, columns].

        Per dataset as `<label>/<name>`; without a label the unweighted mean over datasets (macro, as ParlAI), or with
        `micro` the value of all datasets' tokens (or examples) together; `ppl_micro` is always that. A dataset without
        label tokens is left out; no token at all gives no value.
        """
        named = zip(labels, sums.tolist(), strict=True)
        per_dataset = {label: self._of_dataset(row) for label, row in named if row[0] > 0}
        if not per_dataset:
            return {}
        rows = list(per_dataset.values())
        pooled = self._of_dataset(sums.sum(dim=0).tolist())
        macro = {name: sum(row[name] for row in rows) / len(rows) for name in pooled}
        values = dict(pooled if average == "micro" else macro)
        values[POOLED] = pooled[POOLED.removesuffix("_micro")]
        return values | {f"{label}/{name}": value for label, row in per_dataset.items() for name, value in row.items()}

    def _of_dataset(self, row: Sequence[float]) -> dict[str, float]:
        values, start = {}, 1
        for metric in self.metrics:
            values[metric.name] = metric.value(row[start : start + metric.columns])
            start += metric.columns
        return values
