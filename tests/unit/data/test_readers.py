"""Readers of file formats against small files of our own and bad input (ParlAI's own rows: test_taskdata.py)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distill_engine.data import readers
from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.errors import DataError
from distill_engine.data.formats import text_files
from distill_engine.data.formats.conversations import as_line, sides, spoken
from distill_engine.data.formats.parlai_text import chosen_label, parse_line
from distill_engine.data.kinds.dialogue import KIND
from distill_engine.data.kinds.dialogue_source import DIALOGUE_DATASETS, READABLE_DATASETS, DialogueSpec
from distill_engine.data.readers import first_examples, source_files, stream_dataset

FILES = Path(__file__).parents[2] / "fixtures" / "data"


def written(folder: Path, content: str | bytes) -> str:
    path = folder / "data.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def parlai_text(path: str | Path, **values) -> DialogueSpec:
    return DialogueSpec(name="parlai_text", train=str(path), **values)


def conversations(path: str | Path, **values) -> DialogueSpec:
    return DialogueSpec(name="conversations", train=str(path), **values)


def refusal(spec: DialogueSpec) -> str:
    with pytest.raises(DataError) as caught:
        list(stream_dataset(spec, "train"))
    return str(caught.value)


# -- ParlAI text -------------------------------------------------------------------------------------------------


def test_parlai_text_escapes_bars_and_episode_ends():
    episodes = list(stream_dataset(parlai_text(FILES / "chat_train.txt"), "train"))
    assert [len(episode.turns) for episode in episodes] == [2, 1, 1]
    assert episodes[0].turns[0] == Turn(
        "your persona: i mend clocks.\ngood morning !", "morning ! shall i look at your watch ?"
    )
    assert episodes[1].turns == (Turn("it is 10:45 ?", "a\tb"),)  # `episode_done:False` ends an episode, too
    assert episodes[2].turns[0].label == "is closed by the end of the file"


def test_several_labels_are_kept_apart_and_a_bar_in_a_label_survives():
    line = parse_line("text:a\tlabels:x|y__PIPE__z", "here")
    assert line.labels == ("x", "y|z")


def test_the_drawn_label_depends_on_the_line_number_alone():
    labels = ("a", "b", "c")
    drawn = [chosen_label(labels, number) for number in range(1, 3001)]
    assert drawn == [chosen_label(labels, number) for number in range(1, 3001)]
    assert all(900 < drawn.count(label) < 1100 for label in labels)


def test_an_empty_value_of_episode_done_goes_on(tmp_path):
    path = written(tmp_path, "text:a\tlabels:b\tepisode_done:\ntext:c\tlabels:d\n")
    assert [len(episode.turns) for episode in list(stream_dataset(parlai_text(path), "train"))] == [2]


def test_trailing_space_windows_line_ends_and_byte_order_mark(tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbftext:a\tlabels:b\t \r\n\r\ntext:c\tlabels:\tepisode_done:True\r\n")
    assert list(stream_dataset(parlai_text(path), "train")) == [Episode((Turn("a", "b"), Turn("c", "")))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("labels:x", ["no field `text`", "Add it"]),
        ("text:x", ["no field `labels`", "Add it"]),
        ("text:x\teval_labels:y", ["`eval_labels`", "Rename"]),
        ("text:x\ty\tlabels:z", ["'y' is not `key:value`", "Correct the line"]),
        ("   ", ["no field `text`"]),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, words):
    path = written(tmp_path, f"text:good\tlabels:fine\n\n{line}\n")
    message = refusal(parlai_text(path))
    assert all(word in message for word in [f"{path}, line 3", *words])


def test_a_file_without_episode_ends_is_warned_about(tmp_path, caplog):
    path = written(tmp_path, "text:a\tlabels:b\n" * 101)
    assert len(list(stream_dataset(parlai_text(path), "train"))) == 1
    assert "episode_done" in caplog.text


# -- Conversations -----------------------------------------------------------------------------------------------


def test_conversations_second_speaker():
    episodes = list(stream_dataset(conversations(FILES / "talks_train.jsonl"), "train"))
    assert episodes == [
        Episode((Turn("hello", "good day"), Turn("is it late ?", "a little"))),
        Episode((Turn("tick", "tock"),)),
    ]


def test_conversations_first_speaker_answers_silence():
    episodes = list(stream_dataset(conversations(FILES / "talks_train.jsonl", label_turns="first_speaker"), "train"))
    assert episodes[0] == Episode((Turn("__SILENCE__", "hello"), Turn("good day", "is it late ?")))
    assert episodes[2] == Episode((Turn("__SILENCE__", "nobody answers"),))


def test_both_sides_are_two_episodes_first_speaker_first():
    assert sides(["a", "b", "c"], "both") == [
        Episode((Turn("__SILENCE__", "a"), Turn("b", "c"))),
        Episode((Turn("a", "b"),)),
    ]
    assert sides([], "both") == []


def test_of_a_conversation_whose_last_turn_is_learnt_the_others_are_history():
    (episode,) = sides(["a", "b", "c", "d"], "last")
    assert episode == Episode((Turn("a", "b", learnt=False), Turn("c", "d")))
    assert sides(["a"], "last") == [Episode((Turn("__SILENCE__", "a"),))]
    assert sides([], "last") == []
    line = as_line(["a", "b", "c"], "d")
    assert spoken(json.dumps(line), "here") == ["a", "b", "c", "d"]
    both = [episode, Episode((Turn("e", "f"), Turn("g", "h")))]
    assert list(first_examples(iter(both), 2)) == [episode, Episode((Turn("e", "f"),))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"dialog": [[{"id": "a", "tex', ["not JSON"]),
        ("[" * 100_000, ["not JSON"]),
        ("[1, 2]", ["no list of lists under `dialog`"]),
        ('{"dialog": [{"id": "a", "text": "b"}]}', ["no list of lists"]),
        ('{"dialog": [[{"id": "a", "text": "b"}, {"id": "b"}]]}', ["turn 2", "no string under `text`"]),
        ('{"dialog": [["hello", "there"]]}', ["turn 1", "no string under `text`"]),
        ('{"dialog": [[{"text": "\\ud83d"}]]}', ["half a surrogate pair"]),
    ],
)
def test_a_malformed_conversation_is_named(tmp_path, line, words):
    path = written(tmp_path, '{"dialog": [[{"text": "a"}, {"text": "b"}]]}\n' + line + "\n")
    message = refusal(conversations(path))
    assert all(word in message for word in [f"{path}, line 2", *words])


def test_a_conversation_nobody_answers_is_no_example(tmp_path):
    path = written(tmp_path, '{"dialog": [[{"text": "hello"}]]}\n')
    assert "holds no example" in refusal(conversations(path))
    assert spoken('{"dialog": []}', "here") == []


# -- Files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [parlai_text, conversations])
def test_files_that_cannot_be_read(tmp_path, spec):
    assert "There is no file" in refusal(spec(tmp_path / "absent.txt"))
    assert "is a folder" in refusal(spec(tmp_path))
    assert "is empty" in refusal(spec(written(tmp_path, "")))
    assert "cannot be read" in refusal(spec(written(tmp_path, "") + "/inside"))
    assert "holds no example" in refusal(spec(written(tmp_path, "\n\n")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(tmp_path):
    path = written(tmp_path, "text:a\tlabels:b\n")
    Path(path).chmod(0)
    assert "Permission denied" in refusal(parlai_text(path))


def test_wrong_encoding_names_line_and_byte(tmp_path):
    path = written(tmp_path, "text:ok\tlabels:ok\ntext:caf\xe9\tlabels:b\n".encode("latin-1"))
    assert f"{path}, line 2, byte 9: not UTF-8" in refusal(parlai_text(path))


def test_a_huge_line_is_refused_without_reading_it_all(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE_BYTES", 2**20)
    path = written(tmp_path, "text:a\tlabels:b\ntext:" + "x" * 2**21)
    message = refusal(parlai_text(path))
    assert "line 2: longer than 1 MiB" in message
    assert len(message) < 500


# -- Datasets by name -----------------------------------------------------------------------------------------------


def test_a_task_without_reader_is_refused_with_the_readers_there_are():
    message = refusal(DialogueSpec(name="wizard_of_oz"))
    assert "no reader for the dataset 'wizard_of_oz'" in message
    assert "Did you mean wizard_of_wikipedia?" in message and "conversations, demo, empathetic_dialogues" in message
    assert "Did you mean parlai_text?" in refusal(DialogueSpec(name="parlai_txt"))


def test_a_split_without_file():
    spec = parlai_text(FILES / "chat_train.txt")
    assert KIND.has(spec, "train") and not KIND.has(spec, "valid")
    assert KIND.has(DialogueSpec(name="demo"), "valid")
    with pytest.raises(DataError, match="names no valid file"):
        list(stream_dataset(spec, "valid"))


def test_limits_count_examples_and_cut_the_last_episode():
    spec = parlai_text(FILES / "chat_train.txt", train_examples=1)
    assert [len(episode.turns) for episode in list(stream_dataset(spec, "train"))] == [1]
    spec = parlai_text(FILES / "chat_train.txt", train_examples=3)
    assert [len(e.turns) for e in list(stream_dataset(spec, "train"))] == [2, 1]


def test_files_of_a_split_and_its_episodes_one_at_a_time(tmp_path):
    path = written(tmp_path, "text:a\tlabels:b\tepisode_done:True\ntext:c\tlabels:d\tepisode_done:True\nbroken\n")
    assert source_files(parlai_text(path), "train") == [Path(path)]
    assert source_files(DialogueSpec(name="demo"), "train") == []
    stream = stream_dataset(parlai_text(path), "train")
    assert next(stream) == Episode((Turn("a", "b"),))  # what is broken further on is not read yet
    assert len(list(stream_dataset(parlai_text(path, train_examples=2), "train"))) == 2


def test_the_demo_reader_gets_split_limit_and_seed(monkeypatch):
    asked = []

    def demo_episodes(split, count, seed):
        asked.append((split, count, seed))
        return [Episode((Turn("a", "b"),))]

    from distill_engine.data.corpora import demo

    monkeypatch.setattr(demo, "demo_episodes", demo_episodes)
    spec = DialogueSpec(name="demo", valid_examples=7, seed=5)
    assert len(list(stream_dataset(spec, "valid"))) == 1
    assert asked == [("valid", 7, 5)]


def test_title_is_the_label_or_the_name():
    assert (DialogueSpec(name="demo").title, DialogueSpec(name="demo", label="small talk").title) == (
        "demo",
        "small talk",
    )


def test_recipes_know_the_readers_there_are():
    assert set(readers.READERS) == set(READABLE_DATASETS)
    for name, folder in DIALOGUE_DATASETS.items():
        places = readers.READERS[name].in_root(DialogueSpec(name=name), "train")
        assert {place.partition("/")[0] for place in places} == {folder}
