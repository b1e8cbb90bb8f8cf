"""The registry of metrics: every name that reaches a log, a dashboard or the screen is described here.

Names are paths (`valid/ppl`). Patterns hold placeholders that stand for part of a run's own words:

    {term}    a registered loss term                {layer}   0-based position among the term's mapped layers
    {dataset}  a dataset's label in the recipe      {metric}  what follows `valid/` in a validation metric

What validation measures is registered as a metric (distill_engine/metrics) and gets its rows here by itself.

`python -m distill_engine.telemetry.metrics` prints `docs/metrics.md`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from distill_engine.metrics.named import POOLED, text_metrics, token_metrics
from distill_engine.metrics.protocol import TextMetric, TokenMetric
from distill_engine.metrics.replies import TOKENS
from distill_engine.recipe.problem import did_you_mean
from distill_engine.registry import load, markdown, names, rows

Direction = Literal["lower", "higher", "neither"]

TIME_PARTS: Mapping[str, str] = MappingProxyType(
    {
        "teacher": "the teacher's forward pass",
        "student": "the student's forward pass",
        "losses": "computing loss terms",
        "backward": "the backward pass",
        "optimizer": "the optimizer and its communication",
        "data": "waiting for data",
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
        ("valid/sample/length_ratio", "", "neither", "Length of the sample replies / length of the gold replies."),
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


_HEADER = """# Metrics

Generated from `distill_engine/telemetry/metrics.py`; do not edit, run

    python -m distill_engine.telemetry.metrics > docs/metrics.md

The same names appear in W&B and in `metrics.jsonl`. `train/...` averages over the steps since the last
record, `valid/...` covers every validation example exactly once. A recipe's `validation.metric` is a
validation name without `valid/`: `ppl`, `ppl_micro`, `token_accuracy`, `my_dataset/ppl`.

`valid/teacher_...` come from the teacher passes that validation makes anyway where a term needs the teacher. They do
not change from one validation to the next (rounding aside) and say what to expect of the student. A warning is
recorded where the teacher is no better than chance (perplexity above half its vocabulary), or where the student is
better than its teacher beyond chance (three standard errors over the examples, and 2 % of perplexity).

With `validation.generate_examples` the first N examples of each dataset are answered at each validation, shared by the
ranks, and every metric of texts becomes a value that `validation.metric` may name (`f1`, `my_dataset/f1`).

`valid/sample/...` are of a few fixed prompts (`validation.samples`) that the student answers with its own
generation settings: an alarm, too few to decide by. The texts are in `samples` records, in `distill watch`, in
`distill report` and in the W&B table `valid/samples`, beside the teacher's replies. The teacher answers once, before
the first step of a run folder (`teacher_samples.json`), with its own settings: about as many teacher passes as its
longest replies have tokens, for each dataset.

`train/gradient_...` are measured at one step in `logging.gradient_norm_every_steps`, from the step's first
micro-batch on all ranks, before clipping, without the loss scale. With N micro-batches a norm is about 1/N of the
whole step's; shares do not depend on it. Weights are the student's own, projections left out. With
`losses.balance: gradient_norm` or `gradient_alignment` they are measured whenever factors are updated, too;
docs/balancing.md has more.
"""


_CHOICE = """`distill list metrics` prints what `validation.metric` may name; `ppl_micro`, `total` and terms come beside
them. Another is a class in one file, in this repository or outside (`--plugin`, or an entry point of the group
`distill_engine.metrics`): distill_engine/metrics/protocol.py says what it must have."""


def _table(metrics: list[Metric]) -> list[str]:
    rows = [f"| `{m.name}` | {m.unit or '-'} | {m.better} | {m.meaning} |" for m in metrics]
    return ["| name | unit | better | meaning |", "|---|---|---|---|", *rows]


def render_markdown() -> str:
    """The text of `docs/metrics.md`."""
    lines = [_HEADER, "## What can be chosen", "", _CHOICE, "", markdown("metrics"), ""]
    for section, metrics in sections().items():
        lines += [f"## {section}", "", *_table(metrics), ""]
    listed = [f"| `{name}` | {meaning} |" for name, meaning in terms().items()]
    lines += ["## Values of `{term}`", "", "| term | what it measures |", "|---|---|", *listed, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render_markdown())
