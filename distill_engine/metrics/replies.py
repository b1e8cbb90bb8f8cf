"""How good generated replies are, per task and over all tasks, by all registered text metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from distill_engine.metrics.named import text_metrics

TOKENS = "reply_tokens"  # mean number of generated tokens: of the generation, not of the text


@dataclass(frozen=True)
class Answered:
    """A reply, its generated tokens (end token included), and the right answers to what it replies to, at least one."""

    text: str
    tokens: int
    golds: Sequence[str]


def reply_metrics(answered: Sequence[Answered]) -> dict[str, float]:
    """Named values of one task's replies; no reply gives no value."""
    if not answered:
        return {}
    texts, golds = [one.text for one in answered], [one.golds for one in answered]
    values = {metric.name: metric.value(texts, golds) for metric in text_metrics()}
    return values | {TOKENS: sum(one.tokens for one in answered) / len(answered)}


def reply_values(per_task: Mapping[str, Sequence[Answered]]) -> dict[str, float]:
    """Named values: per task as `<label>/<name>`, without a label the mean over tasks that have replies, or, of pooled
    metrics, the value of all replies together."""
    rows = {label: reply_metrics(answered) for label, answered in per_task.items()}
    spoken = [row for row in rows.values() if row]
    if not spoken:
        return {}
    values = {name: sum(row[name] for row in spoken) / len(spoken) for name in spoken[0]}
    together = list(_all(per_task.values()))
    texts, golds = [one.text for one in together], [one.golds for one in together]
    values |= {metric.name: metric.value(texts, golds) for metric in text_metrics() if metric.pooled}
    return values | {f"{label}/{name}": value for label, row in rows.items() for name, value in row.items()}


def _all(groups: Iterable[Sequence[Answered]]) -> Iterable[Answered]:
    for group in groups:
        yield from group
