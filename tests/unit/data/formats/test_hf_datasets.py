"""Hugging Face copies of the datasets, made here from ParlAI's files: the same episodes must come out of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.errors import DataError
from distill_engine.data.kinds.dialogue_source import DialogueSpec
from distill_engine.data.readers import source_files, stream_dataset

RAW = Path(__file__).parents[3] / "fixtures" / "taskdata" / "raw"
PARLAI_SPLIT = {"train": "train", "validation": "valid", "test": "test"}

datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
datasets.disable_progress_bars()


def raw_json(name: str) -> list[dict[str, Any]]:
    return json.loads((RAW / name).read_text("utf-8"))


def blended_skill_talk(split: str) -> list[dict[str, Any]]:
    return [
        {
            "personas": one["personas"][1],
            "additional_context": one["additional_context"] if one["context_dataset"] == "wizard_of_wikipedia" else "",
            "previous_utterance": [one["free_turker_utterance"], one["guided_turker_utterance"]],
            "context": one["context_dataset"],
            "free_messages": [text for _, text in one["dialog"][::2]],
            "guided_messages": [text for _, text in one["dialog"][1::2]],
        }
        for one in raw_json(f"blended_skill_talk/{split}.json")
    ]


def empathetic_dialogues(split: str) -> list[dict[str, Any]]:
    """Rows in another order than the file's, as nothing promises it."""
    lines = (RAW / f"empatheticdialogues/empatheticdialogues/{split}.csv").read_text("utf-8").splitlines()[1:]
    names = ("conv_id", "utterance_idx", "context", "prompt", "speaker_idx", "utterance", "selfeval", "tags")
    rows = [dict(zip(names, line.split(","), strict=False)) for line in lines]
    rows = [row | {"utterance_idx": int(row["utterance_idx"])} for row in rows]
    order = list(dict.fromkeys(row["conv_id"] for row in rows))
    return sorted(rows, key=lambda row: (order.index(row["conv_id"]), row["utterance_idx"] % 2, row["utterance_idx"]))


def persona_chat(split: str) -> list[dict[str, Any]]:
    """As the one-row-per-dialogue copy: personas apart, the silent opener spelt with spaces, the reply last."""
    episodes = list(stream_dataset(DialogueSpec(name="convai2", root=str(RAW)), split))
    rows = []
    for episode in episodes:
        *personas, opener = episode.turns[0].text.split("\n")
        said = [opener.replace("__SILENCE__", "__ SILENCE __"), *(turn.text for turn in episode.turns[1:])]
        history: list[str] = []
        utterances = []
        for text, turn in zip(said, episode.turns, strict=True):
            history.append(text)
            utterances.append({"candidates": ["no", "filler .", turn.label], "history": list(history)})
            history.append(turn.label)
        rows.append({"personality": [line.removeprefix("your persona: ") for line in personas],
                     "utterances": utterances})  # fmt: skip
    return rows


def persona_chat_turns(split: str) -> list[dict[str, Any]]:
    return [
        {"personality": row["personality"], "conv_id": number, "utterance_idx": at, **turn}
        for number, row in enumerate(persona_chat(split))
        for at, turn in enumerate(row["utterances"])
    ]


def wizard_of_wikipedia(split: str) -> list[dict[str, Any]]:
    name = "train.json" if split == "train" else f"{split}_random_split.json"
    return [
        {"chosen_topic": one["chosen_topic"],
         "dialog": [{"speaker": turn["speaker"], "text": turn["text"]} for turn in one["dialog"]]}
        for one in raw_json(f"wizard_of_wikipedia/{name}")
    ]  # fmt: skip


COPIES = {
    "blended_skill_talk": blended_skill_talk,
    "empathetic_dialogues": empathetic_dialogues,
    "convai2:normalized": persona_chat,
    "convai2": persona_chat_turns,
    "wizard_of_wikipedia": wizard_of_wikipedia,
}


def saved(rows: list[dict[str, Any]], place: Path) -> str:
    datasets.Dataset.from_list(rows).save_to_disk(place)
    return str(place)


def episodes(path: str | Path, split: str = "train", **values) -> list[Episode]:
    return list(stream_dataset(DialogueSpec(name="hf_dataset", **{split: str(path)}, **values), split))


def refusal(path: str | Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        episodes(path, split)
    return str(caught.value)


@pytest.mark.parametrize("dataset", COPIES)
def test_a_saved_dataset_gives_parlais_episodes(dataset, tmp_path):
    splits = {name: datasets.Dataset.from_list(COPIES[dataset](split)) for name, split in PARLAI_SPLIT.items()}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "copy")
    for split in PARLAI_SPLIT.values():
        expected = list(stream_dataset(DialogueSpec(name=dataset, root=str(RAW)), split))
        assert episodes(tmp_path / "copy", split, normalized=dataset != "convai2") == expected
    train = source_files(DialogueSpec(name="hf_dataset", train=str(tmp_path / "copy")), "train")
    assert train and all("train" in str(file.relative_to(tmp_path)) for file in train)


@pytest.mark.parametrize("form", ["folder", "hub folder", "parquet", "arrow", "json", "jsonl"])
def test_every_form_gives_the_same(form, tmp_path):
    rows = persona_chat("train")
    table = datasets.Dataset.from_list(rows)
    place = {"folder": tmp_path / "one", "hub folder": tmp_path}.get(form, tmp_path / f"rows.{form}")
    if form == "folder":
        table.save_to_disk(place)
    elif form == "hub folder":
        (tmp_path / "data").mkdir()
        table.select(range(2)).to_parquet(str(tmp_path / "data" / "train-00000-of-00002.parquet"))
        table.select(range(2, len(rows))).to_parquet(str(tmp_path / "data" / "train-00001-of-00002.parquet"))
        table.select(range(1)).to_parquet(str(tmp_path / "data" / "validation-00000-of-00001.parquet"))
    elif form == "parquet":
        table.to_parquet(str(place))
    elif form == "arrow":
        saved(rows, tmp_path / "one")
        place = next((tmp_path / "one").glob("*.arrow"))
    elif form == "json":
        place.write_text(json.dumps(rows))
    else:
        place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert episodes(place) == list(stream_dataset(DialogueSpec(name="convai2:normalized", root=str(RAW)), "train"))


def test_an_object_of_lists_is_a_list_of_objects(tmp_path):
    """The way that older copies store `utterances`."""
    (tmp_path / "a.jsonl").write_text(json.dumps({
        "personality": ["i run ."],
        "utterances": {"candidates": [["x", "hello"], ["fine"]], "history": [["hi"], ["hi", "hello", "well ?"]]},
    }))  # fmt: skip
    assert episodes(tmp_path / "a.jsonl", normalized=False) == [
        Episode((Turn("your persona: i run .\nhi", "hello"), Turn("well ?", "fine")))
    ]


def utterance(number: int, text: str, conversation: str = "a") -> dict[str, Any]:
    return {"conv_id": conversation, "utterance_idx": number, "prompt": "p", "utterance": text}


def test_empathetic_dialogues_end_where_an_utterance_is_lost(tmp_path, caplog):
    rows = [utterance(1, "a"), utterance(2, "b_comma_ b "), utterance(4, "d"), utterance(5, "e")]
    rows += [utterance(1, "a", "b"), utterance(2, "b\nhit:1,3,x", "b"), utterance(3, "c", "b")]
    rows += [utterance(1, "x", "c"), utterance(2, "y", "c"), utterance(3, "z", "c")]
    assert episodes(saved(rows, tmp_path / "d")) == [
        Episode((Turn("a", "b, b"),)),
        Episode((Turn("x", "y"),)),
        Episode((Turn("y", "z"),)),
    ]
    assert "lost utterances" in caplog.text


LOOK_ALIKES = {
    "people judging bots": ({"id": "1", "dialog_id": "1", "dialog": [{"text": "hi"}], "bot_profile": ["x"],
                             "user_profile": ["y"], "eval_score": 4, "profile_match": 1}, "conv_ai_2"),
    "KILT": ({"id": "1", "input": "hi", "meta": {"a": "b"}, "output": [{"answer": "x"}]}, "KILT"),
    "re-cut wizard": ({"persona": "x", "text": "y"}, "re-cut Wizard of Wikipedia"),
    "anything": ({"question": "x", "answer": "y"}, "no dialogue dataset's"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOOK_ALIKES)
def test_look_alikes_are_refused(case, tmp_path):
    row, said = LOOK_ALIKES[case]
    message = refusal(saved([row], tmp_path / "d"))
    assert said in message and str(tmp_path / "d") in message
    assert all(column in message for column in row)


BAD_ROWS = {
    "no texts": ({"personality": "i run", "utterances": []}, "row 1: no list under `personality`"),
    "no history": ({"personality": [], "utterances": [{"candidates": ["a"], "history": []}]},
                   "row 1, utterances 1: `history` holds 0 texts"),
    "no number": (utterance("one", "a"), "no whole number under `utterance_idx`: 'one'"),
    "no text": (utterance(1, None), "no string under `utterance`: None"),
    "one persona": ({"personas": ["a"], "context": "convai2", "additional_context": "",
                     "previous_utterance": ["a", "b"], "free_messages": ["a"], "guided_messages": ["b"]},
                    "`personas` holds 1 texts where 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_row_of_another_shape(case, tmp_path):
    row, said = BAD_ROWS[case]
    row = row | ({"utterances": [{"candidates": ["a"], "history": ["b"]}]} if case == "no texts" else {})
    (tmp_path / "a.json").write_text(json.dumps([row]))
    message = refusal(tmp_path / "a.json")
    assert said in message and "a.json, line 1, row 1" in message


def test_sources_that_are_none(tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "broken.arrow").write_bytes(b"no")
    (tmp_path / "half.jsonl").write_text('{"chosen_topic": "a", "dialog": []}\n{"chosen')
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert "holds no row" in refusal(tmp_path / "empty.json")
    assert "neither a folder nor a file that can be read as a dataset" in refusal(tmp_path / "text.txt")
    assert "There is no file" in refusal(tmp_path / "absent.json")
    assert "cannot be read as Parquet" in refusal(tmp_path / "broken.parquet")
    assert "cannot be read as Arrow" in refusal(tmp_path / "broken.arrow")
    assert "cannot be read as a saved dataset" in refusal(tmp_path / "saved")
    assert "half.jsonl, line 2: not JSON" in refusal(tmp_path / "half.jsonl")


def test_a_split_that_is_not_there(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(persona_chat("train"))}).save_to_disk(tmp_path / "d")
    message = refusal(tmp_path / "d", "valid")
    assert "has no valid split (validation or valid or dev)" in message
    assert "it holds dataset_dict.json, train" in message


@pytest.mark.parametrize("package", ["datasets", "pyarrow"])
def test_without_the_package(package, tmp_path, monkeypatch):
    table = datasets.Dataset.from_list(persona_chat("train"))
    table.save_to_disk(tmp_path / "d")
    table.to_parquet(str(tmp_path / "d.parquet"))
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(tmp_path / ("d" if package == "datasets" else "d.parquet"))
    assert f"needs the package `{package}`" in message and "pip install -e '.[datasets]'" in message
