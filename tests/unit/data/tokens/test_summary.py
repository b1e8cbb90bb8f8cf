"""Lengths before the cut, against counting one by one; and the command that shows them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.tokens.summary import Lengths, summarise, uncut_lengths
from distill_engine.data.tokens.tokenize import DialogueTokenizer, load_tokenizer

ROOT = Path(__file__).parents[4]
TASKDATA = ROOT / "tests" / "fixtures" / "taskdata" / "raw"


def test_lengths_against_counting_by_hand():
    lengths = np.array([1, 2, 2, 3, 10, 16, 17, 40])
    found = Lengths.of(lengths, limit=16)
    assert (found.mean, found.median, found.most, found.longest) == (pytest.approx(91 / 8), 3, 40, 40)
    assert found.cut == 2 / 8
    ends = [2, 4, 6, 8, 10, 12, 14, 16]
    shares = [3 / 8, 1 / 8, 0, 0, 1 / 8, 0, 0, 1 / 8, 2 / 8]
    assert found.histogram == tuple(zip([*ends, None], shares, strict=True))


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 100])
def test_bins_hold_every_text_once(limit):
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    found = Lengths.of(lengths, limit)
    assert sum(share for _, share in found.histogram) == pytest.approx(1)
    assert [end for end, _ in found.histogram][-2:] == [limit, None]
    assert found.cut == pytest.approx(np.mean(lengths > limit))


@pytest.mark.parametrize("layout", ["blenderbot_layout", "bart_layout"])
def test_uncut_lengths_are_those_of_a_tokenizer_without_limits(tokenizer, episode, layout, request):
    layout = request.getfixturevalue(layout)
    episodes = [episode, Episode((Turn("hi", "yes i do"),))]
    cut = DialogueTokenizer(tokenizer, layout, "\n", 12, 5).tokenise(episodes)
    whole = DialogueTokenizer(tokenizer, layout, "\n", 10_000, 10_000).tokenise(episodes)
    contexts, labels = uncut_lengths(cut)
    assert contexts.tolist() == whole.context_lengths.tolist()
    assert labels.tolist() == whole.label_lengths.tolist()
    summary = summarise(cut)
    assert (summary.examples, summary.episodes) == (4, 2)
    assert summary.contexts.cut == np.mean(contexts > 12) > 0
    assert summary.labels.cut == np.mean(labels > 5) > 0


@pytest.fixture
def shown(warm, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`distill data show`, with a token cache of its own."""

    def show(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        words = ["data", "show", *map(str, arguments), "--set", f"data.cache_dir={tmp_path}"]
        return warm.run(["-m", "distill_engine.cli", *words], os.environ | {"COLUMNS": "100"}, ROOT)

    return show


def test_the_command_shows_tasks_that_the_recipe_does_not_name(shown):
    done = shown(
        "blended_skill_talk", "convai2:normalized", "--root", str(TASKDATA), "--examples", "2",
        "--set", "data.context_tokens=64",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "blended_skill_talk, example 1 of 9" in done.stdout and "convai2:normalized, example 6 of 11" in done.stdout
    assert "Yes please! I will trade you an old map for it." in done.stdout
    assert "context (64 tokens, 22 cut)" in done.stdout
    assert "45.0%" in done.stdout and "55.0%" in done.stdout  # equal weights: 9 / 4 turns to 11 / 4
    assert "above 64: cut" in done.stdout


def test_the_command_counts_the_markers_of_a_tokenizer(shown, tmp_path):
    tokenizer = load_tokenizer(str(ROOT / "recipes" / "demo" / "tokenizer"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<you>", "<partner>"]})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "talk.txt"
    file.write_text("text:<you> hello <you>\tlabels:hi\ntext:a\tlabels:<you> b\tepisode_done:True\n" * 2)
    dataset = {"name": "parlai_text", "label": "talk", "train": str(file), "valid": str(file)}
    done = shown(
        "--recipe", "recipes/demo/teacher.yaml", "--set", f"data.datasets={json.dumps([dataset])}",
        "--set", f"data.tokenizer={tmp_path / 'tokenizer'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("special token")]
    assert [line.split(" (id")[0] for line in lines] == ["special token <you>", "special token <partner>"]
    assert lines[0].endswith("kept whole, times in texts: talk 6") and lines[1].endswith("talk 0")


def test_the_command_refuses_what_it_cannot_show(shown, tmp_path):
    done = shown("blended_skill_talk", "--root", str(tmp_path))
    assert done.returncode == 78
    assert "there is no folder" in done.stderr and "Traceback" not in done.stderr
