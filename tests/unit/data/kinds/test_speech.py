"""Speech from every form of list, bad rows in their place and bounded, filters that count what they leave out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tones import RATE, listed, tone, tones

from distill_engine.data.audio import sound
from distill_engine.data.audio.clips import Place
from distill_engine.data.errors import DataError
from distill_engine.data.kinds.protocol import Reading
from distill_engine.data.kinds.speech import KIND, SpeechSource


def source(file: Path | str | None, **keys) -> SpeechSource:
    return SpeechSource(kind="speech", train=None if file is None else str(file), **keys)


def read(file: Path | str | None, reading: Reading | None = None, **keys) -> list[tuple[object, str]]:
    """Place and text of every example."""
    episodes = KIND.read(source(file, **keys), "train", reading or Reading(seconds=1.0))
    return [(Place.of(turn.note), turn.label) for episode in episodes for turn in episode.turns]


# -- forms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_manifests_name_files_beside_them_in_any_sound_format(tmp_path, name):
    tone(tmp_path / "one.wav", seconds=0.5)
    tone(tmp_path / "two.flac", seconds=0.25, rate=16000)
    rows = [{"audio": "one.wav", "text": "a tone, once"}, {"audio": str(tmp_path / "two.flac"), "text": "two"}]
    file = listed(tmp_path, name, rows)
    first, second = read(file)
    assert first[1] == " a tone, once" and second[1] == " two"  # as models of speech write them
    assert (first[0].at, first[0].samples, first[0].rate, first[0].where) == (
        "one.wav", 4000, 8000, "line 1" if name == "a.jsonl" else "line 2",
    )  # fmt: skip
    assert second[0].seconds == 0.25
    sounds = KIND.sounds(source(file), "train")
    heard = sounds.read(second[0].at)
    assert heard.rate == 16000 and heard.samples.dtype == np.float32 and np.abs(heard.samples).max() < 0.31
    assert len(sound.at_rate(heard, RATE)) == 2000
    assert heard.level == pytest.approx(20 * np.log10(0.3 / np.sqrt(2)), abs=0.1)
    assert read(file, leading_space=False)[1][1] == "two"


def test_datasets_hold_the_sounds_themselves(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    content = tone(tmp_path / "one.wav").read_bytes()
    rows = [
        {"audio": {"bytes": content, "path": "x.wav"}, "sentence": "one"},
        {"audio": {"bytes": None, "path": "two.wav"}, "sentence": "two"},
    ]
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(str(tmp_path / "saved"))
    for name in (".", "saved", "named"):  # paths start at the folder, of a dataset by name where the program does
        (tmp_path / name).mkdir(exist_ok=True)
        tone(tmp_path / name / "two.wav", seconds=0.25)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made.to_parquet(str(tmp_path / "named" / "train.parquet"))
    for own in (
        source("saved", text="sentence"),
        source(tmp_path / "named" / "train.parquet", text="sentence"),
        source(None, dataset=str(tmp_path / "named"), text="sentence"),
    ):
        turns = [episode.turns[0] for episode in KIND.read(own, "train", Reading(seconds=1.0))]
        places = [Place.of(turn.note) for turn in turns]
        assert [turn.label for turn in turns] == [" one", " two"] and [one.at for one in places] == [1, "two.wav"]
        sounds = KIND.sounds(own, "train")
        assert [len(sounds.read(one.at).samples) for one in places] == [4000, 2000]
        assert [sounds.read(one.at).digest == one.digest for one in places] == [True, True]
        assert sounds.stamp(1) is None and sounds.stamp("two.wav")[0] == (tmp_path / "two.wav").stat().st_size
        assert [file.suffix for file in KIND.files(own, "train", None)].count(".json") < 3


# -- rows --------------------------------------------------------------------------------------------------------


def test_rows_are_counted_without_looking_at_sounds(tmp_path):
    rows = [{"audio": f"{name}.wav", "text": name} for name in "abc"]  # none of which is there
    files = [listed(tmp_path, name, rows) for name in ("a.jsonl", "a.csv")]
    assert [KIND.rows(source(file), "train") for file in files] == [3, 3]
    assert KIND.rows(source(files[0], train_examples=2), "train") == 2 and KIND.rows(source(files[0]), "valid") == 0
    assert KIND.rows(source(tmp_path / "none.jsonl"), "train") is None
    assert KIND.rows(SpeechSource(kind="speech", dataset="somebody/speech"), "train") is None, "no network is asked"


def test_filters_count_what_they_leave_out(tmp_path):
    for name, seconds in (("short", 0.1), ("good", 0.5), ("long", 2.0)):
        tone(tmp_path / f"{name}.wav", seconds=seconds)
    rows = [{"audio": f"{name}.wav", "text": "x", "lang": language}
            for name, language in (("good", "de"), ("long", "en"), ("short", "en"), ("good", "en"))]  # fmt: skip
    file, reading = listed(tmp_path, "a.jsonl", rows), Reading(seconds=1.0)
    own = {"max_seconds": 1.0, "min_seconds": 0.2, "language": "lang", "languages": ["en"]}
    assert [one.where for one, _ in read(file, reading, **own)] == ["line 4"]
    assert dict(reading.dropped) == {"languages": 1, "max_seconds": 1, "min_seconds": 1}
    with pytest.raises(DataError, match=r"holds no example.*filters left out 4 rows"):
        read(file, min_seconds=5)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_rows_name_languages_of_their_own(tmp_path, name):
    tone(tmp_path / "a.wav")
    said = [None, "de", " en ", "", "xx"]
    rows = [{"audio": "a.wav", "text": "x", "lang": code} for code in said]
    if name == "a.jsonl":
        del rows[0]["lang"]  # as a row may, the first one too
    file, reading = listed(tmp_path, name, rows), Reading(max_bad_rows=1, languages={"de", "en", "fr"})
    own = {"language": "lang", "target_language": "fr"}
    assert [place.language for place, _ in read(file, reading, **own)] == ["", "de", "en", ""]
    (bad,) = reading.bad
    assert f"{file}, line {5 + (name == 'a.csv')}: the language is 'xx'" in bad and "some are de, en, fr" in bad
    with pytest.raises(DataError, match="'xx', which the tokenizer has no token for"):
        read(file, Reading(languages={"de", "en", "fr"}), **own)
    assert (KIND.languages(source(file, **own)), KIND.language_column(source(file, **own))) == ((None, "fr"), "lang")
    with pytest.raises(DataError, match=r"no column 'language' \(language of 'speech'\)"):
        read(file, language="language")
    numbered = listed(tmp_path, "b.jsonl", [{"audio": "a.wav", "text": "x", "lang": 3}])
    with pytest.raises(DataError, match="line 1: no string under `lang`: 3"):
        read(numbered, **own)


def _odd(folder: Path) -> None:
    tone(folder / "good.wav")
    (folder / "text.wav").write_text("no sound at all, only letters in a file with a wrong name")
    (folder / "cut.flac").write_bytes(tone(folder / "whole.flac", seconds=0.9).read_bytes()[:900])
    soundfile.write(folder / "silent.wav", np.zeros(800), RATE)
    soundfile.write(folder / "empty.wav", np.zeros(0), RATE)
    soundfile.write(folder / "slow.wav", np.ones(800), 100)
    soundfile.write(folder / "nan.wav", np.full(800, np.nan, np.float32), RATE, subtype="FLOAT")
    tone(folder / "long.wav", seconds=40, rate=4000)


BAD = {
    "missing file": ("gone.wav", "there is no file"),
    "unreadable": ("text.wav", "cannot be read as sound"),
    "cut off": ("cut.flac", "cannot be read as sound"),
    "silent": ("silent.wav", "silent.wav is silent: every sample is 0"),
    "empty": ("empty.wav", "empty.wav is empty: it holds no sample"),
    "rate": ("slow.wav", "says that it has 100 samples a second; 4,000 to 384,000 can be resampled"),
    "no numbers": ("nan.wav", "holds samples that are no numbers"),
    "40 s": ("long.wav", r"long.wav lasts 40.0 s, but the model hears 30 s at a time. Cut it, or set max_seconds: 30"),
    "no path": (None, "no column 'audio'"),
}


@pytest.mark.parametrize("name, said", BAD.values(), ids=BAD)
def test_a_bad_sound_is_named_and_bounded(tmp_path, name, said):
    _odd(tmp_path)
    row = {"text": "x"} if name is None else {"audio": name, "text": "x"}
    file = listed(tmp_path, "a.jsonl", [{"audio": "good.wav", "text": "a"}, row])
    with pytest.raises(DataError, match=f"line 2: .*{said}"):
        read(file, Reading(seconds=30.0))
    reading = Reading(max_bad_rows=1, seconds=30.0)
    assert [text for _, text in read(file, reading)] == [" a"] and len(reading.bad) == 1
    assert "1 bad rows are left out" in reading.lines[0]


def test_without_reading_all_headers_alone_are_looked_at(tmp_path):
    _odd(tmp_path)
    file = listed(tmp_path, "a.jsonl", [{"audio": "silent.wav", "text": "a"}, {"audio": "empty.wav", "text": "a"}])
    with pytest.raises(DataError, match="line 2"):
        read(file, read_all=False)


ROWS = {
    "empty text": ("a.csv", 'audio,text\ngood.wav,a\ngood.wav," "\n', "line 3: the text `text` is empty"),
    "broken quote": ("a.csv", 'audio,text\ngood.wav,a\ngood.wav,"b"c\n', "line 3: a broken quote"),
    "a number": ("a.jsonl", '{"audio": "good.wav", "text": "a"}\n{"audio": "good.wav", "text": 3}\n', "no string"),
}


@pytest.mark.parametrize("name, text, said", ROWS.values(), ids=ROWS)
def test_a_bad_row_is_named_and_bounded(tmp_path, name, text, said):
    tone(tmp_path / "good.wav")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read(tmp_path / name)
    assert [text for _, text in read(tmp_path / name, Reading(max_bad_rows=1, seconds=1.0))] == [" a"]


def test_a_missing_column_is_no_bad_row(tmp_path):
    file = tones(tmp_path, 1)
    with pytest.raises(DataError, match=r"no column 'textt' \(text of 'speech'\).*are: audio, text. Did you mean text"):
        read(file, Reading(max_bad_rows=9), text="textt")


# -- recipes -----------------------------------------------------------------------------------------------------


def test_problems_that_need_no_reading(tmp_path, monkeypatch):
    def told(train: str | None = None, **keys) -> str:
        return " / ".join(str(problem) for problem in KIND.problems(source(train, **keys), None))

    file = str(tones(tmp_path, 1))
    assert told(file) == ""
    assert "train is missing" in told()
    assert "train is set beside dataset" in told(file, dataset="x")
    assert "config is 'y', but dataset is null" in told(file, config="y")
    assert "so is audio" in told(file, text="audio")
    assert "language is null" in told(file, languages=["en"])
    assert "max_seconds 1" in told(file, min_seconds=2, max_seconds=1)
    assert "Lists of sounds end with" in told(str(tone(tmp_path / "one.wav")))
    monkeypatch.setattr(sound, "import_module", lambda name: __import__("no_such_library"))
    assert "pip install 'distill-engine[speech]'" in told(file)
    with pytest.raises(DataError, match="cannot be used here"):
        read(file)


def test_a_list_of_sounds_is_recognised_and_pairs_of_texts_are_not(tmp_path):
    file = tones(tmp_path, 3)
    guess = KIND.guess({"train": str(file)})
    assert guess.entry == {"kind": "speech", "train": str(file), "audio": "audio", "text": "text"}
    assert guess.languages is None
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for name, codes in (("all", ["en", "de", "en"]), ("some", ["en", None, "en"])):
        listed = tmp_path / f"{name}.jsonl"
        listed.write_text(
            "".join(json.dumps(row | {"lang": code}) + "\n" for row, code in zip(rows, codes, strict=True))
        )
    assert KIND.guess({"train": str(tmp_path / "all.jsonl")}).languages == ("lang", {"en", "de"})
    assert KIND.guess({"train": str(tmp_path / "some.jsonl")}).languages is None
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"audio": "a question", "text": "b"}) + "\n")
    assert KIND.guess({"train": str(pairs)}) is None and KIND.guess({"train": "no/where"}) is None
