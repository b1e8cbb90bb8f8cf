"""Files replaced in one step, and digests that tell facts apart."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from distill_engine.cluster.files import create_text, digest_of, rename_synced, replace_text, replacing, sha256_of


@pytest.mark.parametrize("sync", [False, True])
def test_a_reader_sees_the_old_text_or_the_new(tmp_path, monkeypatch, sync):
    file = tmp_path / "table"
    replace_text(file, "old\n", sync=sync)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        replace_text(file, "new\n", sync=sync)
    assert file.read_text() == "old\n" and [one.name for one in tmp_path.iterdir()] == ["table"]


def test_two_may_replace_one_file_at_a_time_and_the_later_one_stays(tmp_path):
    """Two threads of a process, or processes of two nodes that have one number."""
    file = tmp_path / "table"
    with replacing(file) as later:
        with replacing(file, sync=True) as sooner:
            sooner.write("sooner\n")
            later.write("later\n")
        assert file.read_text() == "sooner\n"
    assert file.read_text() == "later\n" and [one.name for one in tmp_path.iterdir()] == ["table"]


def test_the_first_text_stays_also_without_hard_links(tmp_path, monkeypatch):
    file = tmp_path / "verdict"
    create_text(file, "75 a")
    create_text(file, "78 b")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "none here")))
    create_text(file, "78 c")
    create_text(tmp_path / "other", "74 d")
    assert (file.read_text(), (tmp_path / "other").read_text()) == ("75 a", "74 d")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["other", "verdict"]


def test_a_folder_gets_its_name_and_files_their_digest(tmp_path):
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "a").write_bytes(b"x" * (2**20 + 3))
    rename_synced(tmp_path / "fresh", tmp_path / "whole")
    digest = hashlib.sha256(b"x" * (2**20 + 3)).hexdigest()
    assert sha256_of(tmp_path / "whole" / "a") == sha256_of(tmp_path / "whole" / "a", sync=True) == digest


def test_facts_in_another_order_are_the_same_facts():
    assert digest_of({"a": [1, 2.5], "b": None}) == digest_of({"b": None, "a": [1, 2.5]}) != digest_of({"a": [2.5, 1]})
    assert digest_of(["é"]) == hashlib.sha256(b'["\\u00e9"]').hexdigest(), "stored digests would differ"
