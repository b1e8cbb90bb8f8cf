"""How good generated replies are, per dataset and over all datasets, by all text metrics that can be computed here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from distill_engine.metrics.named import computable

TOKENS = "reply_tokens"  # mean number of generated tokens: of the generation, not of the text

_LENGTHS, _LENGTH_GROUPS = "input ", 3


@dataclass(frozen=True)
class Answered:
    """A reply, its generated tokens (end token included), and the right answers to what it replies to, at least one."""

    text: str
    tokens: int
    references: Sequence[str]


def reply_metrics(answered: Sequence[Answered]) -> dict[str, float]:
    """Named values of one dataset's replies; no reply gives no value."""
    if not answered:
        return {}
    texts, references = [one.text for one in answered], [one.references for one in answered]
    values = {metric.name: metric.value(texts, references) for metric in computable()}
    return values | {TOKENS: sum(one.tokens for one in answered) / len(answered)}


def reply_values(per_dataset: Mapping[str, Sequence[Answered]]) -> dict[str, float]:
    """Named values: per dataset as `<label>/<name>`, without a label the mean over datasets that have replies, or, of
    pooled metrics, the value of all replies together."""
    rows = {label: reply_metrics(answered) for label, answered in per_dataset.items()}
    spoken = [row for row in rows.values() if row]
    if not spoken:
        return {}
    values = {name: sum(row[name] for row in spoken) / len(spoken) for name in spoken[0]}
    together = list(_all(per_dataset.values()))
    texts, references = [one.text for one in together], [one.references for one in together]
    values |= {metric.name: metric.value(texts, references) for metric in computable() if metric.pooled}
    return values | {f"{label}/{name}": value for label, row in rows.items() for name, value in row.items()}


def values_by_length(answered: Sequence[tuple[int, Answered]], unit: str = "words") -> dict[str, float]:
    """Values of replies to about equally many short, middling and long inputs, as `input A-B words/<name>`: short ones
    break first. `unit`: of input lengths; examples of one length stay together."""
    lengths = sorted(length for length, _ in answered)
    if len(set(lengths)) < _LENGTH_GROUPS:
        return {}
    ends = sorted({lengths[(len(lengths) - 1) * part // _LENGTH_GROUPS] for part in range(1, _LENGTH_GROUPS + 1)})
    begin = lengths[0]
    values: dict[str, float] = {}
    for end in ends:
        row = reply_metrics([one for length, one in answered if begin <= length <= end])
        values |= {f"{_LENGTHS}{begin}-{end} {unit}/{name}": value for name, value in row.items()}
        begin = end + 1
    return values


def length_groups(values: Mapping[str, float]) -> list[str]:
    """The groups of `values_by_length`, in order."""
    return list(dict.fromkeys(name.partition("/")[0] for name in values if name.startswith(_LENGTHS)))


def _all(groups: Iterable[Sequence[Answered]]) -> Iterable[Answered]:
    for group in groups:
        yield from group
