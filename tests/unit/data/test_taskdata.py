"""Every row that ParlAI itself produced: texts, labels, order, and token ids.

The folder is tests/fixtures/taskdata, or whatever TASKDATA_DIR names: `raw/` in ParlAI's own layout, `toy_dict/hf` (a
tokenizer) and `expected_*` files, which are found by name.
"""

from __future__ import annotations

import json
import os
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from distill_engine.data.corpora.convai2 import normalize_reply
from distill_engine.data.episodes import Episode
from distill_engine.data.kinds.dialogue_source import DialogueSpec
from distill_engine.data.readers import READERS, stream_dataset
from distill_engine.data.tokens.layout import SpecialTokens
from distill_engine.data.tokens.tokenize import DialogueTokenizer, load_tokenizer
from distill_engine.families.lookup import family_named

ROOT = Path(os.environ.get("TASKDATA_DIR") or Path(__file__).parents[2] / "fixtures" / "taskdata")
DELIMITER = "  "
PAD, START, END = 0, 1, 2

GENERIC = {  # ParlAI's name of a format -> our reader, and its file in raw/generic
    "parlaiformat": ("parlai_text", "my_parlaiformat_{split}.txt"),
    "jsonfile": ("conversations", "my_conversations_{split}.jsonl"),
    "fbdialog": ("fbdialog", "my_fbdialog.txt"),
}
LABEL_TURNS = {"secondspeaker": "second_speaker", "firstspeaker": "first_speaker", "both": "both"}


def expected_files() -> list[Path]:
    return sorted(ROOT.glob("expected_*.jsonl"))


ROW_FILES = [file for file in expected_files() if file.stem != "expected_normalize_reply"]
NORMALIZE_FILE, COUNT_FILE = ROOT / "expected_normalize_reply.jsonl", ROOT / "expected_counts.json"
COUNTS: dict[str, list[int]] = json.loads(COUNT_FILE.read_text("utf-8")) if COUNT_FILE.is_file() else {}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def spec_of(name: str) -> tuple[DialogueSpec, str]:
    """`blended_skill_talk_train`, `generic_jsonfile_train_both` and the like -> what to read, and the split."""
    if name.startswith("generic_"):
        kind, split, *turns = name.removeprefix("generic_").split("_")
        reader, file = GENERIC[kind]
        path = str(ROOT / "raw" / "generic" / file.format(split=split))
        label_turns = LABEL_TURNS[turns[0]] if turns else "second_speaker"
        return DialogueSpec(name=reader, train=path, valid=path, test=path, label_turns=label_turns), split
    stem, split = re.fullmatch(r"(.+)[_/](train|valid|test)", name).groups()
    topic = stem.endswith("_topic_split")
    dataset = stem.removesuffix("_topic_split").replace("_normalized", ":normalized")
    assert dataset in READERS, f"{name} is of no dataset that can be read"
    return DialogueSpec(name=dataset, root=str(ROOT / "raw"), topic_split=topic), split


def read(name: str) -> list[Episode]:
    return list(stream_dataset(*spec_of(name)))


def file_name(file: Path) -> str:
    return file.stem.removeprefix("expected_")


def test_there_is_something_to_compare_with():
    assert ROW_FILES, f"no expected_*.jsonl in {ROOT}"
    assert any('"t128"' in file.read_text("utf-8") for file in ROW_FILES), "no expected row holds token ids"
    assert all(lines(file) for file in ROW_FILES), "an expected file is empty"


@pytest.mark.parametrize("file", ROW_FILES, ids=file_name)
def test_texts_labels_and_order_are_parlais(file):
    episodes, rows = read(file_name(file)), lines(file)
    found = [(number, at, turn.text) for number, one in enumerate(episodes) for at, turn in enumerate(one.turns)]
    assert found == [(row["episode"], row["turn"], row["text"]) for row in rows]
    labels = [turn.label for episode in episodes for turn in episode.turns]
    # several labels: ParlAI draws one of them, and so do we
    assert all(label in row["labels"] for label, row in zip(labels, rows, strict=True))
    ends = [at == len(one.turns) - 1 for one in episodes for at in range(len(one.turns))]
    assert ends == [row["episode_done"] for row in rows]


@pytest.mark.parametrize("file", ROW_FILES, ids=file_name)
def test_the_history_is_parlais(file):
    for number, group in groupby(lines(file), key=lambda row: row["episode"]):
        said: list[str] = []
        episode = read(file_name(file))[number]
        for turn, row in zip(episode.turns, group, strict=True):
            said.append(turn.text)
            assert row.get("full_text", DELIMITER.join(said)) == DELIMITER.join(said)
            assert row.get("full_text_newline", "\n".join(said)) == "\n".join(said)
            said.append(turn.label)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(ROOT / "toy_dict" / "hf"))


@pytest.mark.parametrize("file", [f for f in ROW_FILES if '"t128"' in f.read_text("utf-8")], ids=file_name)
def test_ids_are_parlais(file, tokenizer):
    layout = family_named("blenderbot").layout(SpecialTokens(PAD, END, START), True)
    rows = lines(file)
    for key in (key for key in rows[0] if re.fullmatch(r"t\d+", key)):
        limit = int(key[1:])
        encoder = DialogueTokenizer(tokenizer, layout, DELIMITER, limit, limit)
        dataset = encoder.tokenise(read(file_name(file)))
        whole = DialogueTokenizer(tokenizer, layout, DELIMITER, 100_000, 100_000).tokenise(read(file_name(file)))
        assert len(dataset) == len(rows)
        for index, row in enumerate(rows):
            example = dataset.example(index)
            assert example.context_ids.tolist() == row[key]["text_vec"]
            assert example.label_ids.tolist() == row[key]["label_vec"]
            assert len(whole.example(index).context_ids) == row[key]["context_original_length"]


@pytest.mark.parametrize("file", [f for f in ROW_FILES if '"t128"' in f.read_text("utf-8")], ids=file_name)
def test_barts_ids_are_the_same_words_between_start_and_end(file, tokenizer):
    """ParlAI's BART agent cuts to the limit less two, then adds both; the words are tokenised as ever."""
    limit = 32
    layout = family_named("bart").layout(SpecialTokens(PAD, END, START))
    dataset = DialogueTokenizer(tokenizer, layout, DELIMITER, limit, limit).tokenise(read(file_name(file)))
    for index, row in enumerate(lines(file)):
        ids = dataset.example(index)
        words = row["t128"]["text_vec"][:-1]  # without the global end token, which BART does not have
        if row["t128"]["context_original_length"] <= 128:
            assert ids.context_ids.tolist() == [START, *words[-(limit - 2) :], END]
        assert ids.label_ids.tolist() == row["t32"]["label_vec"]


@pytest.mark.parametrize("name", COUNTS)
def test_episodes_and_examples_are_counted_as_parlai_does(name):
    episodes = read(name)
    assert [len(episodes), sum(len(episode.turns) for episode in episodes)] == COUNTS[name]


@pytest.mark.parametrize("row", lines(NORMALIZE_FILE), ids=lambda row: row["in"])
def test_replies_are_normalised_as_parlai_does(row):
    assert normalize_reply(row["in"]) == row["out"]
