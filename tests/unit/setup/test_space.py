"""What a run needs on its disk is computed from its own sizes, said, and refused where nothing would fit."""

import pytest

from distill_engine.checkpoint.retention import Retention
from distill_engine.checkpoint.space import Space
from distill_engine.setup import space as module
from distill_engine.setup.run_folder import RunFolderError
from distill_engine.setup.space import check_space

GIB = 2**30


class OneRank:
    rank, world_size = 0, 1

    def gather(self, value):
        return [value]


@pytest.fixture
def free(monkeypatch):
    """Sets what the file system says is free: the boundary that cannot be filled with gigabytes here."""
    return lambda size: monkeypatch.setattr(module, "free_bytes", lambda _folder: size)


def test_it_is_said_with_what_it_is_made_of(tmp_path, free):
    said = []
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    (tmp_path / "exports" / "step-00000004").mkdir(parents=True)
    free(100 * GIB)
    check_space(tmp_path, OneRank(), Space(20 * GIB, 5 * GIB, Retention(2)), said.append)
    assert said == [
        f"{tmp_path} needs 45.0 GiB, 100.0 GiB are free: a checkpoint takes 20.0 GiB (up to 2 kept and one being "
        "written), an export 5.0 GiB (one kept and one being written)"
    ]


def test_too_little_for_all_is_a_warning_and_for_one_an_error(tmp_path, free):
    said, space = [], Space(20 * GIB, 5 * GIB, Retention(2))
    free(69 * GIB)
    check_space(tmp_path, OneRank(), space, said.append)
    assert said[0].startswith(f"warning: {tmp_path} needs 70.0 GiB, 69.0 GiB are free") and "keep_last" in said[0]
    free(24 * GIB)
    with pytest.raises(RunFolderError, match=r"24\.0 GiB are free.*Not even one of each fits.*--run-dir"):
        check_space(tmp_path, OneRank(), space, said.append)
    assert len(said) == 1
