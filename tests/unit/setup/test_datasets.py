"""A recipe's datasets: read, tokenised once, told about; and what a real terminal and a real pipe show of it."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tokenizers import ByteLevelBPETokenizer

from distill_engine.data.config import DataSection
from distill_engine.data.errors import DataError
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenize import DialogueTokenizer
from distill_engine.setup import datasets
from distill_engine.setup.datasets import Display, load_datasets

TURN = "text:hello there\tlabels:how do you do\tepisode_done:True\n"


@pytest.fixture(scope="module")
def encoder() -> DialogueTokenizer:
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator(["hello there how do you do"], vocab_size=270, show_progress=False)
    layout = SequenceLayout(0, 1, 2, (), (2,), (1,), 0)
    tokenizer = SimpleNamespace(backend_tokenizer=backend._tokenizer, SPECIAL_TOKENS_ATTRIBUTES=())
    return DialogueTokenizer(tokenizer, layout, "\n", 64, 64)


@pytest.fixture
def data(tmp_path) -> DataSection:
    for name, count in (("train", 30), ("valid", 4)):
        (tmp_path / f"{name}.txt").write_text(TURN * count)
    files = {split: str(tmp_path / f"{split}.txt") for split in ("train", "valid")}
    datasets = [
        {"name": "parlai_text", "label": "chat", **files},
        {"name": "parlai_text", "label": "few", "train": files["train"], "train_examples": 7},
        {"name": "demo", "train_examples": 5, "valid_examples": 3},
    ]
    return DataSection.model_validate({"datasets": datasets, "cache_dir": str(tmp_path / "cache")})


def entries(data: DataSection) -> list[Path]:
    return sorted((Path(str(data.cache_dir)) / "tokens").iterdir())


def test_splits_of_all_tasks_once_tokenised_are_kept(data, encoder, capfd):
    loaded = load_datasets(data, encoder)
    assert (loaded.labels, loaded.valid_labels) == (("chat", "few", "demo"), ("chat", "demo"))
    assert [len(one) for one in loaded.train] == [30, 7, 5] and [len(one) for one in loaded.valid] == [4, 3]
    kept = entries(data)
    assert len(kept) == 3  # chat's two splits and few's one; the demo makes its dialogues anew
    times = [(entry / "tokens.bin").stat().st_mtime_ns for entry in kept]
    again = load_datasets(data, encoder)
    assert [dataset.digest for dataset in again.train] == [dataset.digest for dataset in loaded.train]
    assert entries(data) == kept and [(entry / "tokens.bin").stat().st_mtime_ns for entry in kept] == times
    assert capfd.readouterr() == ("", "")  # nothing to say about a second's work


def test_labels_weights_and_places_are_not_content_limits_of_the_split_are(data, encoder):
    load_datasets(data, encoder)
    chat = data.datasets[0]
    for change, new in (
        ({"label": "other", "weight": 3.0, "valid_examples": 4}, 1),  # a limit is content even if it cuts nothing
        ({"train_examples": 3}, 1),
        ({"test": "absent.txt"}, 0),
    ):
        before = len(entries(data))
        changed = data.model_copy(update={"datasets": [chat.model_copy(update=change)]})
        load_datasets(changed, encoder)
        assert len(entries(data)) == before + new, change


def test_without_cache_dir_the_environment_says_where(data, encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_ENGINE_CACHE", str(tmp_path / "other"))
    load_datasets(data.model_copy(update={"cache_dir": None}), encoder)
    assert len(list((tmp_path / "other" / "tokens").iterdir())) == 3


def test_what_cannot_be_kept_is_told_once_and_by_rank_0_only(data, encoder, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    nowhere = data.model_copy(update={"cache_dir": str(tmp_path / "file")})
    assert len(load_datasets(nowhere, encoder).train) == 3
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("cannot be written") == 1 and said.err.count("\n") == 1
    launched = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    load_datasets(nowhere, encoder)
    assert capfd.readouterr() == ("", "")


def test_bad_data_is_an_error_and_no_entry(data, encoder, tmp_path):
    (tmp_path / "train.txt").write_text("text:\tlabels:nothing was said before\tepisode_done:True\n")
    with pytest.raises(DataError, match=r"Dataset 'chat' has no train example"):
        load_datasets(data, encoder)
    (tmp_path / "train.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"train\.txt, line 1"):
        load_datasets(data, encoder)


def test_a_terminal_shows_how_far_it_is_and_a_pipe_one_line_if_it_took_long(monkeypatch):
    shown, said = {}, {}
    for terminal in (True, False):
        screen, lines = io.StringIO(), []
        console = Console(file=screen, force_terminal=terminal, width=100)
        display = Display("tokenising chat, train", console, lines.append)
        display.begin()
        display.add(12_345)
        display._bar.refresh()
        monkeypatch.setattr(datasets, "_WORTH_A_LINE_SECONDS", -1.0 if not terminal else 10.0)
        display.end()
        shown[terminal], said[terminal] = screen.getvalue(), lines
    assert "tokenising chat, train" in shown[True] and "12,345 episodes" in shown[True] and said[True] == []
    assert "12,345" not in shown[False] and said[False] == ["tokenising chat, train: done in 0 s"]
