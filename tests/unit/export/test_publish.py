"""Publishing: whoever reads `best` finds one whole version, whatever happens to the writer."""

import shutil
from pathlib import Path

import pytest

from distill_engine.export.hf import publish


def writer(text: str):
    """Stands for write_student: two files that belong together."""

    def write_two(folder: Path) -> None:
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).write_text(text)

    return write_two


def readable(link: Path) -> str:
    """What a reader finds behind the link; both files must agree."""
    texts = {(link / name).read_text() for name in ("a", "b")}
    assert len(texts) == 1
    return texts.pop()


def versions(link: Path) -> list[str]:
    return sorted(path.name for path in (link.parent / "exports").iterdir())


def test_a_new_version_replaces_the_old_one(tmp_path):
    best = tmp_path / "best"
    assert publish(best, "step-1", writer("one")) == tmp_path / "exports" / "step-1"
    assert readable(best) == "one" and best.is_symlink()
    publish(best, "step-2", writer("two"))
    assert readable(best) == "two" and versions(best) == ["step-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "exports"]


def test_the_same_step_again(tmp_path):
    """A run killed between publishing and its checkpoint publishes the same step when it is started again."""
    best = tmp_path / "best"
    for text in ("one", "again", "and again"):
        target = publish(best, "step-1", writer(text))
        assert readable(best) == text and best.resolve() == target
    assert len(versions(best)) == 1


def test_the_run_folder_may_be_moved(tmp_path):
    publish(tmp_path / "run" / "best", "step-1", writer("one"))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert readable(tmp_path / "elsewhere" / "best") == "one"


class Killed(BaseException):
    """Stands for the end of the process at one instant."""


@pytest.mark.parametrize("moment", ["in write", "rename", "symlink_to", "replace"])
def test_killed_at_any_instant_a_reader_finds_a_whole_version_and_the_next_publish_works(tmp_path, monkeypatch, moment):
    best = tmp_path / "best"
    publish(best, "step-1", writer("one"))

    def killed(*_args, **_options):
        raise Killed

    def write_half(folder: Path) -> None:
        folder.mkdir()
        (folder / "a").write_text("two")
        killed()

    with monkeypatch.context() as patch:
        if moment != "in write":
            patch.setattr(Path, moment, killed)
        with pytest.raises(Killed):
            publish(best, "step-2", write_half if moment == "in write" else writer("two"))
    assert readable(best) == "one"
    leftover = tmp_path / "exports" / ".tmp-step-2"
    if leftover.exists():
        shutil.rmtree(leftover)  # as write_student does before it writes
    publish(best, "step-2", writer("two, again"))
    assert readable(best) == "two, again" and len(versions(best)) == 1


def test_killed_while_old_versions_are_deleted(tmp_path, monkeypatch):
    best = tmp_path / "best"
    publish(best, "step-1", writer("one"))

    def killed(*_args, **_options):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", killed)
        publish(best, "step-2", writer("two"))
    assert readable(best) == "two"
    publish(best, "step-3", writer("three"))
    assert readable(best) == "three" and versions(best) == ["step-3"]


def test_a_failing_writer_leaves_the_old_version(tmp_path):
    best = tmp_path / "best"
    publish(best, "step-1", writer("one"))

    def fail(_folder: Path) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        publish(best, "step-2", fail)
    assert readable(best) == "one" and versions(best) == ["step-1"]
