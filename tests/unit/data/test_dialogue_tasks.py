"""The downloaded datasets: damaged files, missing splits, and rules that the fixture rows do not show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill_engine.data.corpora.convai2 import normalize_lines
from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.errors import DataError
from distill_engine.data.kinds.dialogue import KIND
from distill_engine.data.kinds.dialogue_source import DialogueSpec
from distill_engine.data.readers import source_files, stream_dataset

RAW = Path(__file__).parents[2] / "fixtures" / "taskdata" / "raw"
DATASETS = ["blended_skill_talk", "wizard_of_wikipedia", "convai2", "convai2:normalized", "empathetic_dialogues"]
TRAIN = {
    "blended_skill_talk": "blended_skill_talk/train.json",
    "wizard_of_wikipedia": "wizard_of_wikipedia/train.json",
    "convai2": "ConvAI2/train_self_original.txt",
    "empathetic_dialogues": "empatheticdialogues/empatheticdialogues/train.csv",
}
HEADER = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n"


def spec(dataset: str, root: Path, **values) -> DialogueSpec:
    return DialogueSpec(name=dataset, root=str(root), **values)


def refusal(dataset: str, root: Path | None, split: str = "train", **values) -> str:
    with pytest.raises(DataError) as caught:
        list(stream_dataset(DialogueSpec(name=dataset, root=None if root is None else str(root), **values), split))
    return str(caught.value)


def root_with(tmp_path: Path, dataset: str, data: str | bytes) -> Path:
    """A root whose training file of a dataset holds `data`."""
    file = tmp_path / TRAIN[dataset]
    file.parent.mkdir(parents=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return tmp_path


# -- What is there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_split_is_there_and_files_are_named(dataset):
    for split in ("train", "valid", "test"):
        assert KIND.has(spec(dataset, RAW), split)
        (file,) = source_files(spec(dataset, RAW), split)
        assert file.is_file()


@pytest.mark.parametrize("dataset", DATASETS)
def test_without_a_root_or_with_a_wrong_one(dataset, tmp_path):
    assert "needs data.root, which is null" in refusal(dataset, None)
    message = refusal(dataset, tmp_path / "absent")
    assert f"({tmp_path / 'absent'} is missing)" in message and "distill data fetch" in message
    folder = Path(TRAIN[dataset.partition(":")[0]]).parts[0]
    assert f"({tmp_path / folder} is missing)" in refusal(dataset, tmp_path)


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_missing_split(dataset, tmp_path):
    shutil.copytree(RAW, tmp_path / "data")
    for file in (tmp_path / "data").rglob("*valid*"):
        file.unlink()
    assert len(list(stream_dataset(spec(dataset, tmp_path / "data"), "train"))) > 1
    message = refusal(dataset, tmp_path / "data", "valid")
    assert f"Dataset {dataset!r} has no valid split: there is no {tmp_path}" in message and "valid" in message


def test_limits_stop_reading(tmp_path):
    """The file is damaged behind the limit; what was asked for comes all the same."""
    episodes = (RAW / TRAIN["blended_skill_talk"]).read_text()
    root = root_with(tmp_path, "blended_skill_talk", episodes[: len(episodes) // 2])
    found = list(stream_dataset(spec("blended_skill_talk", root, train_examples=2), "train"))
    assert [len(episode.turns) for episode in found] == [2]
    assert "not JSON" in refusal("blended_skill_talk", root)


# -- ConvAI2 -----------------------------------------------------------------------------------------------------


def test_convai2_falls_back_to_the_file_without_candidates(tmp_path):
    (tmp_path / "ConvAI2").mkdir()
    shutil.copy(RAW / "ConvAI2" / "train_self_original_no_cands.txt", tmp_path / "ConvAI2")
    assert list(stream_dataset(spec("convai2", tmp_path), "train")) == list(
        stream_dataset(spec("convai2", RAW), "train")
    )


def test_own_persona_comes_before_the_partners_and_both_before_the_rest():
    text = "hello .\npartner's persona: i run .\nyour persona: i ' m tall .\nis it ?yes"
    assert normalize_lines(text) == "your persona: I'm tall.\npartner's persona: I run.\nHello.\nIs it?yes"


@pytest.mark.parametrize("dataset", ["convai2", "convai2:normalized"])
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"hello there\tyes", "line 2: begins with 'hello', not with a number"),
        (b"2\thi there", "begins with '2\\thi', not with a number"),
        (b"2 caf\xe9\thi", "line 2, byte 6: not UTF-8"),
    ],
)
def test_a_damaged_convai2_file(tmp_path, dataset, line, said):
    root = root_with(tmp_path, "convai2", b"1 hi\thello\n" + line + b"\n")
    message = refusal(dataset, root)
    assert said in message and str(root / TRAIN["convai2"]) in message


def fbdialog(tmp_path: Path, text: str) -> list[Episode]:
    (tmp_path / "file.txt").write_text(text)
    return list(stream_dataset(DialogueSpec(name="fbdialog", train=str(tmp_path / "file.txt")), "train"))


def test_fbdialog_episodes_context_and_labels(tmp_path):
    text = "0 zero\n1 one\ta|b\n\n2  \tc\n3 left\n3 same number\td\t1\t\n1 x\\ny\n2 \te\n5\n6 \tf\n7 nobody answers\n"
    episodes = fbdialog(tmp_path, text)
    assert episodes[0].turns[0].text == "zero\none" and episodes[0].turns[0].label in ("a", "b")
    assert episodes[0].turns[1:] == (Turn("", "c"),)
    assert episodes[1:] == [Episode((Turn("same number", "d"),)), Episode((Turn("x\ny\n", "e"), Turn("5\n", "f")))]


def test_fbdialog_without_an_answer(tmp_path):
    with pytest.raises(DataError, match="holds no example"):
        fbdialog(tmp_path, "1 hello\n2 there\n")


# -- EmpatheticDialogues -----------------------------------------------------------------------------------------


def row(number: int | str, text: str, conversation: str = "a", tail: str = ",5|5,") -> str:
    return f"{conversation},{number},sad,It was_comma_ so.,7,{text}{tail}\n"


def empathetic(tmp_path: Path, text: str) -> list[Episode]:
    return list(
        stream_dataset(spec("empathetic_dialogues", root_with(tmp_path, "empathetic_dialogues", text)), "train")
    )


def test_empathetic_dialogues_halves_and_spaces(tmp_path):
    text = HEADER + row(1, " a ") + row(2, " b ") + row(3, ' "c_comma_') + row(1, "d", "b") + "\n" + row(1, "e", "c")
    assert empathetic(tmp_path, text) == [Episode((Turn(" a ", "b"),)), Episode((Turn(" b ", '"c,'),))]


def test_empathetic_dialogues_without_its_header_or_doubled_folder(tmp_path):
    file = tmp_path / "empatheticdialogues" / "train.csv"
    file.parent.mkdir()
    file.write_text(row(1, "a") + row(2, "b"))
    assert list(stream_dataset(spec("empathetic_dialogues", tmp_path), "train")) == [Episode((Turn("a", "b"),))]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (row(1, "a") + row(2, "b, too"), "line 3: 9 fields"),
        (row(1, "a") + row(2, "b, far, too"), "line 3: 10 fields"),
        (row(1, "a") + "a,2,sad\n", "line 3: 3 fields in 'a,2,sad'"),
        (row(1, "a, b, c"), "line 2: 10 fields"),
        (row(1, "a") + row(3, "c"), "line 3: utterance_idx is '3', but this is utterance 2"),
        (row(1, "a") + row("two", "c"), "line 3: utterance_idx is 'two'"),
        (row(2, "a") + row(2, "c"), "conversation 'a': utterance_idx is '2', but this is utterance 1"),
    ],
)
def test_a_damaged_empathetic_dialogues_file(tmp_path, rows, said):
    if said == "line 3: 9 fields":  # allowed: the ninth is a list of candidates
        assert empathetic(tmp_path, HEADER + rows)
        return
    root = root_with(tmp_path, "empathetic_dialogues", HEADER + rows)
    message = refusal("empathetic_dialogues", root)
    assert said in message and str(root / TRAIN["empathetic_dialogues"]) in message
    assert "8 fields, or 9" in message


# -- BlendedSkillTalk and Wizard of Wikipedia --------------------------------------------------------------------


def changed(dataset: str, **values: Any) -> str:
    """The training file with a changed second episode; a value of ... removes the key."""
    episodes = json.loads((RAW / TRAIN[dataset]).read_text())
    episodes[1] |= values
    episodes[1] = {key: value for key, value in episodes[1].items() if value is not ...}
    return json.dumps(episodes)


BROKEN = [
    ("blended_skill_talk", {"personas": [["a", "b"]]}, "holds no second worker"),
    ("blended_skill_talk", {"personas": [["a", "b"], ["c"]]}, "`personas` holds 1 texts where 2"),
    ("blended_skill_talk", {"free_turker_utterance": ...}, "no string under `free_turker_utterance`: None"),
    ("blended_skill_talk", {"context_dataset": 7}, "no string under `context_dataset`: 7"),
    ("blended_skill_talk", {"dialog": [[0, "a"], [1]]}, "message 2: no string under `dialog`"),
    ("blended_skill_talk", {"dialog": "hello"}, "no list under `dialog`: 'hello'"),
    ("wizard_of_wikipedia", {"dialog": ...}, "no list under `dialog`: None"),
    ("wizard_of_wikipedia", {"dialog": [{"speaker": "0_Wizard"}]}, "dialog 1: no string under `text`"),
    ("wizard_of_wikipedia", {"dialog": [{"text": "hi"}]}, "dialog 1: no string under `speaker`"),
    ("wizard_of_wikipedia", {"dialog": ["hi"]}, "dialog 1: not an object but 'hi'"),
    ("wizard_of_wikipedia", {"chosen_topic": "\ud800"}, "half a surrogate pair"),
]


@pytest.mark.parametrize(("dataset", "values", "said"), BROKEN, ids=range(len(BROKEN)))
def test_an_episode_of_another_shape(tmp_path, dataset, values, said):
    root = root_with(tmp_path, dataset, changed(dataset, **values))
    message = refusal(dataset, root)
    assert f"{root / TRAIN[dataset]}, line 1, episode 2" in message and said in message


@pytest.mark.parametrize("dataset", ["blended_skill_talk", "wizard_of_wikipedia"])
def test_a_json_file_that_is_cut_off_or_in_another_encoding(tmp_path, dataset):
    text = (RAW / TRAIN[dataset]).read_bytes()
    root = root_with(tmp_path, dataset, text[:-200])
    message = refusal(dataset, root)
    assert f"{root / TRAIN[dataset]}, line " in message and ", episode 4: not JSON" in message
    (root / TRAIN[dataset]).write_bytes(text.decode().encode("utf-16"))
    assert "line 1: not UTF-8" in refusal(dataset, root)
    (root / TRAIN[dataset]).write_text("[]")
    assert "holds no example" in refusal(dataset, root)


def test_unseen_topics_are_another_file(tmp_path):
    for split in ("valid", "test"):
        unseen = list(stream_dataset(spec("wizard_of_wikipedia", RAW, topic_split=True), split))
        raw = json.loads((RAW / "wizard_of_wikipedia" / f"{split}_topic_split.json").read_text())
        assert unseen[0].turns[0].text.split("\n")[0] == raw[0]["chosen_topic"]
        assert unseen != list(stream_dataset(spec("wizard_of_wikipedia", RAW), split))
    train = [
        list(stream_dataset(spec("wizard_of_wikipedia", RAW, topic_split=unseen), "train")) for unseen in (True, False)
    ]
    assert train[0] == train[1]
