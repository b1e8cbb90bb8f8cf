"""Pairs from every form of file, bad rows in their place and bounded, filters that count what they leave out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from distill_engine.data.config import DataSection
from distill_engine.data.errors import DataError
from distill_engine.data.kinds.named import kind_of
from distill_engine.data.kinds.pairs import KIND, PairsSource
from distill_engine.data.kinds.protocol import Reading

ROWS = [{"translation": {"en": f"house {n}", "de": f"Haus, {n}"}, "id": n} for n in range(3)]
NESTED = {"source": "translation.en", "target": "translation.de"}
EXPECTED = [(f"house {n}", f"Haus, {n}") for n in range(3)]


def source(file: Path | str | None, **keys) -> PairsSource:
    return PairsSource(kind="pairs", train=None if file is None else str(file), **keys)


def read(file: Path, reading: Reading | None = None, **keys) -> list[tuple[str, str]]:
    episodes = KIND.read(source(file, **keys), "train", reading or Reading())
    return [(turn.text, turn.label) for episode in episodes for turn in episode.turns]


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


# -- forms -------------------------------------------------------------------------------------------------------


def test_json_lines_and_lists_with_nested_columns(tmp_path):
    lines = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n")
    assert read(lines, **NESTED) == EXPECTED
    assert read(written(tmp_path, "a.json", json.dumps(ROWS)), **NESTED) == EXPECTED


@pytest.mark.parametrize("name, mark", [("a.csv", ","), ("a.tsv", "\t")])
def test_separated_files_with_quotes_and_line_breaks(tmp_path, name, mark):
    rows = [["source", "target"], ["house 0", '"Haus, 0"'], ['"two\nlines"', '"so ""called"""']]
    text = "\n".join(mark.join(row) for row in rows)
    assert read(written(tmp_path, name, text)) == [("house 0", "Haus, 0"), ("two\nlines", 'so "called"')]


def test_parquet_and_saved_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(ROWS)
    made.to_parquet(str(tmp_path / "a.parquet"))
    assert read(tmp_path / "a.parquet", **NESTED) == EXPECTED
    datasets.DatasetDict({"train": made, "validation": made.select([0])}).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved", **NESTED) == EXPECTED
    assert [file.suffix for file in KIND.files(source(tmp_path / "saved"), "train", None)].count(".arrow") == 1


def test_a_dataset_by_name_is_what_the_library_gives(tmp_path, monkeypatch):
    """A folder stands in for the Hub's name: the library takes either."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "named"
    place.mkdir()
    written(place, "train.jsonl", "\n".join(map(json.dumps, ROWS)))
    named = source(None, dataset=str(place), **NESTED)
    episodes = list(KIND.read(named, "train", Reading()))
    assert [(one.turns[0].text, one.turns[0].label) for one in episodes] == EXPECTED
    assert KIND.has(named, "train") and not KIND.has(named, "valid")
    assert [file.suffix for file in KIND.files(named, "train", None)] == [".arrow"]
    with pytest.raises(DataError, match="cannot be had"):
        KIND.has(source(None, dataset=str(tmp_path / "nowhere")), "train")


# -- rows --------------------------------------------------------------------------------------------------------


def test_prefix_limit_and_filters_with_their_counts(tmp_path):
    rows = [("a", "b"), ("long source", "b"), ("good", "fine"), ("good", "much too long"), ("also", "fine")]
    file = written(tmp_path, "a.jsonl", "\n".join(json.dumps({"source": s, "target": t}) for s, t in rows))
    reading = Reading()
    filters = {"max_source_characters": 8, "min_characters": 2, "max_ratio": 3.0, "prefix": "say: "}
    assert read(file, reading, **filters) == [("say: good", "fine"), ("say: also", "fine")]
    assert dict(reading.dropped) == {"min_characters": 1, "max_source_characters": 1, "max_ratio": 1}
    assert reading.lines == ["filters left out 3 rows: min_characters 1, max_source_characters 1, max_ratio 1"]
    assert read(file, train_examples=2) == rows[:2]
    with pytest.raises(DataError, match=r"holds no example.*filters left out 5 rows"):
        read(file, min_characters=90)


BAD = {
    "not JSON": ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a"\n', "line 2: not JSON"),
    "no target": ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a"}\n', "line 2: no column 'target'"),
    "empty target": ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a", "target": " "}', "line 2: the target"),
    "a number": ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": 3, "target": "b"}\n', "line 2: no string"),
    "broken quote": ("a.csv", 'source,target\na,b\na,"b"c\n', "line 3: a broken quote"),
    "open quote": ("a.csv", 'source,target\na,b\na,"b\n', "line 3: a broken quote"),
    "fields": ("a.tsv", "source\ttarget\na\tb\na\n", "line 3: 1 fields, but the header has 2"),
}


@pytest.mark.parametrize("name, text, said", BAD.values(), ids=BAD)
def test_a_bad_row_is_named_and_bounded(tmp_path, name, text, said):
    file = written(tmp_path, name, text)
    with pytest.raises(DataError, match=said) as found:
        read(file)
    assert str(file) in str(found.value)
    reading = Reading(max_bad_rows=1)
    assert read(file, reading) == [("a", "b")]
    assert len(reading.bad) == 1 and "1 bad rows are left out" in reading.lines[0]


def test_more_bad_rows_than_may_be_are_an_error_that_tells_the_first(tmp_path):
    file = written(tmp_path, "a.jsonl", '{"source": "a", "target": "b"}\n[]\n{}\n')
    with pytest.raises(DataError, match=r"line 3(.|\n)*bad row number 2, and data.max_bad_rows is 1(.|\n)*line 2"):
        read(file, Reading(max_bad_rows=1))


def test_a_missing_column_is_no_bad_row(tmp_path):
    file = written(tmp_path, "a.csv", "article,highlight\na,b\n")
    with pytest.raises(DataError, match=r"no column .highlights..*are: article, highlight.*Did you mean highlight"):
        read(file, Reading(max_bad_rows=99), source="article", target="highlights")


# -- recipes -----------------------------------------------------------------------------------------------------


def test_an_entry_is_checked_by_its_kind():
    entry = {"kind": "pairs", "train": "x.csv", "source": "en", "max_ratio": 2}
    section = DataSection.model_validate({"datasets": [entry, {"name": "demo"}]})
    assert isinstance(section.datasets[0], PairsSource) and section.datasets[0].max_ratio == 2.0
    assert kind_of(section.datasets[0]) is KIND and kind_of(section.datasets[1]).keep == "last"
    assert DataSection.model_validate(section.model_dump(mode="json")) == section
    with pytest.raises(ValidationError, match=r"datasets.0.seed"):
        DataSection.model_validate({"datasets": [entry | {"seed": 1}]})
    with pytest.raises(ValidationError, match=r"datasets.0.kind(.|\n)*Did you mean pairs"):
        DataSection.model_validate({"datasets": [entry | {"kind": "pair"}]})


def test_problems_that_need_no_reading(tmp_path):
    def told(train: str | None = None, **keys) -> list[str]:
        return [str(problem) for problem in KIND.problems(source(train, **keys), None)]

    text = str(written(tmp_path, "a.txt", "x"))
    assert "train is missing" in told()[0]
    assert "train is set beside dataset" in told(text, dataset="x")[0]
    assert "config is 'y', but dataset is null" in told(text, config="y")[0]
    assert any("Files of pairs end with" in one for one in told(text))
    assert any("does not exist" in one for one in told("nowhere.csv"))
    assert any("copying a column" in one for one in told(text, target="source"))
