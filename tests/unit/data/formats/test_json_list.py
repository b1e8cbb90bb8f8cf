"""A JSON list read piece by piece: the same entries as at once, and every damage with its place."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill_engine.data.errors import DataError
from distill_engine.data.formats import json_list as module
from distill_engine.data.formats.json_list import json_list

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 0, 3]), chunk=st.integers(1, 9),
       plain=st.booleans())  # fmt: skip
def test_entries_are_those_of_the_whole_list(tmp_path, monkeypatch, values, indent, chunk, plain):
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk)
    path = tmp_path / "list.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=plain), encoding="utf-8")
    assert [value for _, value in json_list(str(path))] == values


def test_places_name_file_line_and_entry(tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(b'\xef\xbb\xbf[\n  {"a":\n 1},\n\n  {"b": 2}\n]\n')
    assert [where for where, _ in json_list(str(path), "episode")] == [
        f"{path}, line 2, episode 1",
        f"{path}, line 5, episode 2",
    ]


DAMAGED = {
    "empty": (b"", "is empty"),
    "blank": (b" \n ", "is empty"),
    "no list": (b'{"a": 1}', "line 1, character 1: '{' instead of '['"),
    "cut off in a text": (b'[{"a": 1},\n{"a": "hel', "line 2, entry 2: not JSON (Unterminated string"),
    "cut off in an entry": (b'[{"a": 1},\n{"a": ', "entry 2: not JSON (Expecting value at line 2, character 18)"),
    "cut off after an entry": (b'[{"a": 1}', "the file ends where ',' should come"),
    "cut off after a comma": (b'[{"a": 1},\n', "entry 2: not JSON"),
    "no comma": (b"[1\n 2]", "line 2, character 5: '2' instead of ','"),
    "broken inside": (b'[1,\n{"a" 1},\n3]', "line 2, entry 2: not JSON (Expecting ':' delimiter at line 2"),
    "more after it": (b"[1] x", "'x' after the end of the list"),
    "Latin-1": (b'[1,\n"caf\xe9",\n2]', "line 2: not UTF-8, near"),
    "cut off in a character": (b'["caf\xc3', "line 1: not UTF-8"),
    "too deep": (b"[" * 200_000, "not JSON"),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("chunk", [3, 2**20], ids=["small steps", "large steps"])
def test_damage_is_told_with_its_place(tmp_path, monkeypatch, case, chunk):
    data, said = DAMAGED[case]
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk)
    path = tmp_path / "list.json"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(json_list(str(path)))
    assert said in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_monstrous_entry_is_refused_before_all_of_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_ENTRY_CHARACTERS", 2**20)
    path = tmp_path / "list.json"
    path.write_text('["' + "x" * 2**24 + '"]')
    tracemalloc.start()
    with pytest.raises(DataError, match="not JSON"):
        list(json_list(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "list.json"
    entry = json.dumps({"text": "x" * 5000})
    path.write_text("[" + ", ".join([entry] * 4000) + "]")  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in json_list(str(path))) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
