"""The registry knows every name that the system logs, and the documentation is the registry."""

from pathlib import Path

import pytest

from distill_engine.telemetry.metrics import (
    TIME_PARTS,
    UnknownMetricError,
    describe,
    registered,
    sections,
    terms,
)
from distill_engine.telemetry.metrics_page import render_markdown

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "name",
    [
        "step",
        "train/total",
        "train/ppl",
        "train/skipped_steps",
        *(f"train/term/{term}/{kind}" for term in terms() for kind in ("raw", "weighted", "layer/11")),
        *(f"time/share/{part}" for part in TIME_PARTS),
        "valid/ppl_micro",
        "valid/term/prediction/raw",
        "valid/convai2:normalized/ppl",
        "valid/blended_skill_talk/token_exact_match",
        "best/ppl",
        "best/convai2:normalized/token_accuracy",
    ],
)
def test_names_of_a_run_are_registered_under_their_own_name(name):
    assert describe(name).name == name


def test_every_pattern_matches_its_own_example():
    values = {"term": "task", "dataset": "demo", "layer": "0", "metric": "ppl"}
    for metric in registered():
        assert describe(metric.name.format(**values)).meaning == metric.meaning


@pytest.mark.parametrize(
    "name",
    ["train/pppl", "valid", "train/term/nonsense/raw", "train/term/task/layer/x", "valid/a/b/ppl", "best/nonsense", ""],
)
def test_other_names_are_refused(name):
    with pytest.raises(UnknownMetricError, match="is not a registered metric"):
        describe(name)


def test_refusal_is_a_key_error_that_reads_as_a_sentence_and_suggests():
    with pytest.raises(KeyError) as caught:
        describe("train/token_acuracy")
    assert str(caught.value).startswith(
        "`train/token_acuracy` is not a registered metric. Did you mean train/token_accuracy?"
    )


def test_best_takes_unit_and_direction_from_its_metric():
    assert (describe("best/ppl").better, describe("best/token_accuracy").better) == ("lower", "higher")
    assert describe("best/token_accuracy").unit == "share"


def test_patterns_are_unique_and_every_section_is_filled():
    names = [metric.name for metric in registered()]
    assert len(names) == len(set(names))
    assert sum(len(metrics) for metrics in sections().values()) == len(names)
    assert all(metric.meaning.endswith(".") for metric in registered())


def test_documentation_is_current():
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == render_markdown(), "run: python -m distill_engine.telemetry.metrics_page > docs/metrics.md"
