"""Metrics by name: which there are, which way they are better, which value stands for all datasets."""

from __future__ import annotations

from distill_engine.metrics.protocol import Better, TextMetric, TokenMetric
from distill_engine.registry import load, names

POOLED = "ppl_micro"  # perplexity over the label tokens of all datasets together, whatever validation.average says


def token_metrics() -> tuple[TokenMetric, ...]:
    """All of them, in the registry's order."""
    return tuple(metric for metric in _all() if metric.measures == "tokens")


def text_metrics() -> tuple[TextMetric, ...]:
    """All of them, in the registry's order."""
    return tuple(metric for metric in _all() if metric.measures == "texts")


def computable() -> tuple[TextMetric, ...]:
    """Those of texts that can be computed on this machine."""
    return tuple(metric for metric in text_metrics() if not metric.missing())


def _all() -> list[TokenMetric | TextMetric]:
    return [load("metrics", name) for name in names("metrics")]


def by_shown_name() -> dict[str, TokenMetric | TextMetric]:
    """All of them by the names that `distill evaluate` shows: ParlAI's, where it has the metric under another one."""
    return {getattr(metric, "parlai", "") or metric.name: metric for metric in _all()}


def in_one_line() -> dict[str, str]:
    """Of what a line of a terminal has room for: what it calls the metric, to the metric's name in validations."""
    return {metric.short: f"valid/{metric.name}" for metric in token_metrics() if metric.short}


def is_share(shown: str) -> bool:
    """Whether a value of this name is written in per cent."""
    metric = by_shown_name().get(shown)
    return metric is not None and metric.unit == "share"


def better(value: str) -> Better:
    """Which way a validation value (`ppl`, `my_dataset/f1`, `total`, `term/task/raw`) is better; neither if unknown."""
    last = value.rsplit("/", 1)[-1]
    if last in (POOLED, "total", "raw"):
        return "min"
    return load("metrics", last).better if last in names("metrics") else "neither"
