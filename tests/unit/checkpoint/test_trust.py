"""A checkpoint that somebody else could have written is not unpickled."""

import os
import pickle
from enum import Enum
from pathlib import Path

import pytest
import torch

from distill_engine.checkpoint.manifest import CheckpointError
from distill_engine.checkpoint.trust import refuse_foreign, scan_pickles


class Stage(Enum):
    TWO = 2


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_refused_and_not_run(tmp_path, zipped):
    canary = tmp_path / "canary"
    folder = tmp_path / "checkpoint" / "student"
    folder.mkdir(parents=True)
    torch.save({"fine": torch.zeros(3)}, folder / "a_fine.pt")
    torch.save({"x": Hostile(canary)}, folder / "shard.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"shard\.pt was not loaded") as caught:
        scan_pickles(tmp_path / "checkpoint", allowed=[Stage])
    assert "system" in str(caught.value)
    assert "weights_only" not in str(caught.value), "torch's advice to load it all the same is not passed on"
    assert not canary.exists()
    torch.load(folder / "shard.pt", weights_only=False)
    assert canary.exists(), "the file really was hostile"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_plain_hostile_pickle_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Hostile(tmp_path / "canary")))
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        scan_pickles(tmp_path, allowed=[])
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_only_named_classes_pass(tmp_path, zipped):
    torch.save({"stage": Stage.TWO, "w": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert scan_pickles(tmp_path, allowed=[Stage]) == 1
    with pytest.raises(CheckpointError, match="Stage"):
        scan_pickles(tmp_path, allowed=[])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"garbage"])
def test_what_is_no_torch_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.pt"):
        scan_pickles(tmp_path, allowed=[])


@pytest.mark.parametrize("what", ["step", "step/student", "step/student/shard.pt", "."])
def test_what_everybody_can_write_is_refused(tmp_path, what):
    (tmp_path / "step" / "student").mkdir(parents=True)
    (tmp_path / "step" / "student" / "shard.pt").write_text("x")
    refuse_foreign(tmp_path / "step")
    (tmp_path / what).chmod(0o777)
    with pytest.raises(CheckpointError, match=r"can be written by every user .mode 777.*chmod -R o-w"):
        refuse_foreign(tmp_path / "step")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_refused(tmp_path):
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "shard.pt").write_text("x")
    os.chown(tmp_path / "step" / "shard.pt", 12345, 12345)
    with pytest.raises(CheckpointError, match=r"shard\.pt belongs to user 12345, this run to user 0"):
        refuse_foreign(tmp_path / "step")
