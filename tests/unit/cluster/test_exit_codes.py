"""A verdict reaches a launcher that loses exit codes."""

import pytest

from distill_engine.cluster.exit_codes import STOPPED_AND_SAVED, VERDICT_VARIABLE, leave_verdict, read_verdict


def test_a_verdict_is_left_and_read(tmp_path, monkeypatch):
    file = tmp_path / "verdict"
    monkeypatch.setenv(VERDICT_VARIABLE, str(file))
    leave_verdict(STOPPED_AND_SAVED)
    assert read_verdict(file) == STOPPED_AND_SAVED
    assert [path.name for path in tmp_path.iterdir()] == ["verdict"]


def test_without_a_place_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.delenv(VERDICT_VARIABLE, raising=False)
    leave_verdict(0)
    monkeypatch.setenv(VERDICT_VARIABLE, str(tmp_path / "no" / "such" / "folder"))
    leave_verdict(0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"seventy", b"\xff"])
def test_what_is_no_verdict(tmp_path, content):
    file = tmp_path / "verdict"
    assert read_verdict(file) is None
    file.write_bytes(content)
    assert read_verdict(file) is None
