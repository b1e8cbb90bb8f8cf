"""The registry of metrics: every name that reaches a log, a dashboard or the screen is described here.

Names are paths (`valid/ppl`). Patterns hold placeholders that stand for part of a run's own words:

    {term}    a registered loss term                {layer}   0-based position among the term's mapped layers
    {dataset}  a dataset's label in the recipe      {metric}  what follows `valid/` in a validation metric

What validation measures is registered as a metric (distill_engine/metrics) and gets its rows here by itself.

`python -m distill_engine.telemetry.metrics` prints `docs/metrics.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from distill_engine.metrics.named import POOLED, text_metrics, token_metrics
from distill_engine.metrics.protocol import TextMetric, TokenMetric
from distill_engine.metrics.replies import TOKENS
from distill_engine.recipe.problem import did_you_mean
from distill_engine.registry import load, names, rows

Direction = Literal["lower", "higher", "neither"]

TIME_PARTS: Mapping[str, str] = MappingProxyType(
    {
        "teacher": "the teacher's forward pass",
        "student": "the student's forward pass",
        "losses": "computing loss terms",
        "backward": "the backward pass",
        "optimizer": "the optimizer and its communication",
        "data": "waiting for data",
        "rollout": "making the text that is learnt on (nothing where it is the data's)",
        "other": "everything else",
    }
)


def terms() -> dict[str, str]:
    """Every registered loss term and what it measures, in the registry's order."""
    return dict(rows("terms"))


def layered_terms() -> tuple[str, ...]:
    """Those that are compared layer by layer, so that `train/term/{term}/layer/{layer}` exists."""
    return tuple(name for name in names("terms") if load("terms", name).layered)


class UnknownMetricError(KeyError):
    """A metric name that the registry does not hold."""

    def __str__(self) -> str:
        """The message as written; KeyError would show it in quotes."""
        return str(self.args[0])


@dataclass(frozen=True)
class Metric:
    """One metric, or a family of them when `name` is a pattern.

    `better` says which way is progress; 'neither' marks facts that are not good or bad in themselves.
    """

    name: str
    unit: str
    meaning: str
    better: Direction
    section: str


Row = tuple[str, str, Direction, str]


def _section(title: str, *rows: Row) -> tuple[Metric, ...]:
    """Metrics of one section from rows of (name, unit, better, meaning)."""
    return tuple(Metric(name, unit, meaning, better, title) for name, unit, better, meaning in rows)


_OR_MICRO = "; all datasets together with `validation.average: micro`"
_OVER_DATASETS = ", over the replies of all datasets (`validation.generate_examples`)"
_SECONDS: Row = ("valid/reply_seconds", "s", "lower", "Time to make and measure these replies, shared by the ranks.")
_OUT = "the term is left out of its averages there, and is NaN if it was never finite"
_BETTER: Mapping[str, Direction] = {"min": "lower", "max": "higher", "neither": "neither"}


def _validated() -> tuple[TokenMetric, ...]:
    """Token metrics that validation measures: all but those that need a divergence at temperature 1."""
    return tuple(metric for metric in token_metrics() if metric.needs != "divergence")


def _rows(prefix: str, suffix: str, of: Iterable[TokenMetric | TextMetric]) -> tuple[Row, ...]:
    return tuple(
        (f"{prefix}{one.name}", one.unit, _BETTER[one.better], f"{one.meaning[0].upper()}{one.meaning[1:]}{suffix}.")
        for one in of
    )


def _generated(prefix: str) -> tuple[Row, ...]:
    return ((f"{prefix}{TOKENS}", "tokens", "neither", "Length of a reply, end token included."),)


def registered() -> tuple[Metric, ...]:
    """Everything that can be logged; plugins may add to it."""
    return _registered(names("metrics"))


@lru_cache(maxsize=4)
def _registered(_known: tuple[str, ...]) -> tuple[Metric, ...]:
    return (*_TRAINING, *_validation(), *_GUARD, *_BEST)


def _validation() -> tuple[Metric, ...]:
    return (
        *_section(
            "Validation",
            *_rows("valid/", f", averaged over datasets{_OR_MICRO}", _validated()),
            (f"valid/{POOLED}", "", "lower", "Perplexity over the label tokens of all datasets together."),
            ("valid/total", "", "lower", "Weighted sum of all terms on the validation examples."),
            ("valid/term/{term}/raw", "", "lower", "One term before its weight, on the validation examples."),
            ("valid/seconds", "s", "lower", "Duration of the validation."),
        ),
        *_section("Validation by dataset", *_rows("valid/{dataset}/", ", on one dataset", _validated())),
        *_section("Replies", *_rows("valid/", _OVER_DATASETS, text_metrics()), *_generated("valid/"), _SECONDS),
        *_section(
            "Replies by dataset",
            *_rows("valid/{dataset}/", ", on one dataset", text_metrics()),
            *_generated("valid/{dataset}/"),
        ),
    )


_TRAINING: tuple[Metric, ...] = (
    *_section(
        "Progress",
        ("step", "steps", "neither", "Applied optimizer steps: the horizontal axis of every chart."),
        ("train/epoch", "epochs", "neither", "Passes over the training examples, with fraction."),
        ("train/examples", "examples", "neither", "Training examples consumed on all ranks."),
    ),
    *_section("Losses", ("train/total", "", "lower", "Weighted sum of all terms: what is minimised.")),
    *_section(
        "Loss terms",
        ("train/term/{term}/raw", "", "lower", "One term before its weight."),
        ("train/term/{term}/weighted", "", "lower", "One term times its weight and factor: its part of the total."),
    ),
    *_section(
        "Loss terms by layer",
        ("train/term/{term}/layer/{layer}", "", "lower", "The raw term of one of its mapped layer pairs."),
    ),
    *_section(
        "Quality",
        ("train/ppl", "", "lower", "exp of the cross-entropy per label token since the last record."),
        ("train/token_accuracy", "share", "higher", "Label tokens that the student ranks first."),
        ("train/teacher_agreement", "share", "higher", "Label tokens where student and teacher rank the same first."),
    ),
    *_section(
        "Optimizer",
        ("train/lr", "", "neither", "Learning rate of the last applied step."),
        ("train/grad_norm", "", "neither", "Global gradient norm before clipping."),
        ("train/loss_scale", "", "neither", "fp16 loss scale; 1 in bf16 and fp32."),
        ("train/skipped_steps", "steps", "lower", "Steps skipped so far, restarts included (overflow, NaN)."),
        ("train/nonfinite", "micro-batches", "lower", f"Of all ranks, with an inf or NaN loss term; {_OUT}."),
        ("train/nonfinite/{term}", "micro-batches", "lower", "The same for one term; recorded when there are any."),
    ),
    *_section(
        "Gradients by term",
        ("train/gradient_norm/{term}", "", "neither", "Gradient norm of one weighted term, over all student weights."),
        ("train/gradient_share/{term}", "share", "neither", "One term's gradient norm / the sum of all terms'."),
    ),
    *_section(
        "Loss balance",
        ("train/balance/{term}", "", "neither", "Factor of one term's weight (`losses.balance`)."),
    ),
    *_section(
        "Throughput",
        ("train/tokens_per_second", "tokens/s", "higher", "Context and label tokens of all ranks, without padding."),
        ("train/padding_share", "share", "lower", "Positions that hold padding."),
        ("train/rollout/sampled_share", "share", "neither", "Micro-batches of the student's own samples."),
        ("train/rollout/sample_tokens", "tokens", "neither", "Length of such a sample, end token included."),
        ("time/seconds_per_step", "s", "lower", "Seconds per optimizer step, validation and saving left out."),
    ),
    *_section(
        "Time shares",
        *((f"time/share/{part}", "share", "neither", f"Part of a step: {what}.") for part, what in TIME_PARTS.items()),
    ),
    *_section(
        "Memory",
        ("memory/peak_gib", "GiB", "lower", "Peak accelerator memory of one rank since the last record."),
        ("memory/host_gib", "GiB", "lower", "Resident host memory of one rank's process."),
    ),
    *_section(
        "Records",
        ("run/missing_records", "", "lower", "Records lost here because a sink failed for too long."),
    ),
)

_GUARD: tuple[Metric, ...] = (
    *_section(
        "Sample replies",
        ("valid/sample/empty_share", "share", "lower", "Sample replies without a word."),
        ("valid/sample/repetition", "share", "lower", "Token 3-grams that a sample reply has said before."),
        ("valid/sample/unique_share", "share", "neither", "Different texts among the sample replies."),
        ("valid/sample/length", "tokens", "neither", "Length of a sample reply, end token included."),
        ("valid/sample/length_ratio", "", "neither", "Length of the sample replies / length of the references."),
        ("valid/sample/seconds", "s", "lower", "Time to make the sample replies, on rank 0 while the others wait."),
    ),
)
_BEST: tuple[Metric, ...] = (
    *_section(
        "Best",
        ("best/{metric}", "its own", "neither", "Best value so far of the metric that decides which student is kept."),
    ),
)

_PLACEHOLDERS = {"dataset": "[^/]+", "layer": "[0-9]+", "metric": ".+"}


@lru_cache(maxsize=4)
def _expressions(
    known_terms: tuple[str, ...], known_metrics: tuple[str, ...]
) -> tuple[tuple[re.Pattern[str], Metric], ...]:
    placeholders = {"term": "|".join(known_terms), **_PLACEHOLDERS}
    # what is no dataset's first: valid/sample/repetition is not of a dataset called `sample`
    ordered = sorted(_registered(known_metrics), key=lambda metric: "{dataset}" in metric.name)
    return tuple((_expression(metric.name, placeholders), metric) for metric in ordered)


def _expression(pattern: str, placeholders: Mapping[str, str]) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    literal = [re.escape(part) for part in parts[::2]]
    groups = [f"(?P<{name}>{placeholders[name]})" for name in parts[1::2]]
    return re.compile("".join(a + b for a, b in zip(literal, [*groups, ""], strict=True)))


@lru_cache(maxsize=4096)
def describe(name: str) -> Metric:
    """The registered metric of this concrete name, with `name` filled in.

    `best/X` takes unit and direction from `valid/X`.
    Raises UnknownMetricError (a KeyError) when nothing in the registry matches.
    """
    for expression, metric in _expressions(names("terms"), names("metrics")):
        found = expression.fullmatch(name)
        if found is None:
            continue
        if "metric" in found.groupdict():
            source = describe(f"valid/{found['metric']}")
            return replace(metric, name=name, unit=source.unit, better=source.better)
        return replace(metric, name=name)
    raise UnknownMetricError(_unknown(name))


def of_teacher(name: str) -> str:
    """The teacher's own value of a student's validation metric: valid/ppl -> valid/teacher_ppl. Not all have one."""
    path, _, last = name.rpartition("/")
    return f"{path}/teacher_{last}"


def _unknown(name: str) -> str:
    parts = (
        f"`{name}` is not a registered metric.",
        did_you_mean(name, [metric.name for metric in registered()]),
        "Only names of distill_engine/telemetry/metrics.py may be logged, so that no chart can point at nothing; "
        "docs/metrics.md lists them. Register it there first.",
    )
    return " ".join(filter(None, parts))


def sections() -> dict[str, list[Metric]]:
    """Section -> its metrics, both in registry order."""
    grouped: dict[str, list[Metric]] = {}
    for metric in registered():
        grouped.setdefault(metric.section, []).append(metric)
    return grouped
