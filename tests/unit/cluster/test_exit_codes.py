"""A verdict reaches a launcher that loses exit codes, and what may pass is told from what cannot."""

import errno
import os
import time

import pytest

from distill_engine.cluster.exit_codes import (
    BAD_INPUT,
    DONE,
    FAILED,
    HUNG,
    RETRY,
    STOPPED_AND_SAVED,
    VERDICT_VARIABLE,
    await_verdict,
    forget_verdict,
    leave_verdict,
    may_pass,
    read_verdict,
)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv(VERDICT_VARIABLE, str(tmp_path / "verdict"))
    return tmp_path / "verdict"


def test_a_verdict_is_left_and_read(file):
    leave_verdict(STOPPED_AND_SAVED)
    assert read_verdict(file) == (STOPPED_AND_SAVED, "")
    assert [path.name for path in file.parent.iterdir()] == ["verdict"]


def test_a_hang_says_that_it_is_one(file):
    leave_verdict(STOPPED_AND_SAVED, HUNG)
    assert file.read_text() == "75 hung\n"
    assert read_verdict(file) == (STOPPED_AND_SAVED, HUNG)


def test_the_first_error_stays_and_the_end_of_the_run_replaces_it(file, monkeypatch):
    leave_verdict(RETRY, "rank 3: no\nmemory", unless_there=True)
    leave_verdict(FAILED, "rank 0: its connection is gone", unless_there=True)
    assert read_verdict(file) == (RETRY, "rank 3: no memory")
    leave_verdict(DONE)
    assert read_verdict(file) == (DONE, "")
    forget_verdict()
    forget_verdict()
    assert read_verdict(file) == (None, "")

    def no_links(*_):
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    leave_verdict(BAD_INPUT, unless_there=True)
    leave_verdict(FAILED, unless_there=True)
    assert read_verdict(file) == (BAD_INPUT, "")
    assert [path.name for path in file.parent.iterdir()] == ["verdict"]


def test_without_a_place_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.delenv(VERDICT_VARIABLE, raising=False)
    leave_verdict(0)
    forget_verdict()
    monkeypatch.setenv(VERDICT_VARIABLE, str(tmp_path / "no" / "such" / "folder"))
    leave_verdict(0)
    leave_verdict(0, unless_there=True)
    forget_verdict()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"seventy", b"\xff", b" ", "٧٥".encode()])
def test_what_is_no_verdict(tmp_path, content):
    file = tmp_path / "verdict"
    assert read_verdict(file) == (None, "")
    file.write_bytes(content)
    assert read_verdict(file) == (None, "")


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"75", (75, "")),
        (b"75\n", (75, "")),
        (b"75 hung", (75, "hung")),
        (b" 1  a\tb \xff\n", (1, "a b \N{REPLACEMENT CHARACTER}")),
    ],
)
def test_a_verdict_is_read_however_it_was_written(tmp_path, content, expected):
    (tmp_path / "verdict").write_bytes(content)
    assert read_verdict(tmp_path / "verdict") == expected


def raised(error: Exception, cause: Exception | None) -> Exception:
    error.__cause__ = cause
    return error


class Decided(Exception):
    may_pass = True


PASSING = "EIO ESTALE ETIMEDOUT ENOSPC EDQUOT ENOMEM EMFILE EAGAIN EROFS ENOLCK EREMOTEIO EHOSTDOWN ENETUNREACH EBUSY"
PROVEN = "ENOENT EACCES EPERM EISDIR ENOTDIR ENAMETOOLONG EEXIST"


@pytest.mark.parametrize(
    "error, expected",
    [
        *((OSError(getattr(errno, name), name), True) for name in PASSING.split()),
        *((OSError(getattr(errno, name), name), False) for name in PROVEN.split()),
        (OSError("of no number"), False),
        (MemoryError(), True),
        (ValueError("no"), False),
        (raised(ValueError("cannot be read"), OSError(errno.ESTALE, "x")), True),
        (raised(ValueError("cannot be read"), raised(ValueError(), MemoryError())), True),
        (raised(ValueError("cannot be read"), OSError(errno.ENOENT, "x")), False),
        (raised(ValueError("on another rank"), Decided()), True),
    ],
    ids=repr,
)
def test_what_may_pass(error, expected):
    assert may_pass(error) is expected


def test_where_no_verdict_comes_or_can_come_the_wait_has_an_end(tmp_path, monkeypatch):
    for name in (str(tmp_path / "verdict"), ""):
        monkeypatch.setenv("DISTILL_VERDICT", name)
        began = time.monotonic()
        await_verdict(0.1)
        assert time.monotonic() - began >= 0.1
