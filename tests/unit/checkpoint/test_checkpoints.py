"""Checkpoints of one rank, on real files: what is kept, what is refused, what people are told."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch

from distill_engine.checkpoint.checkpoints import CheckpointError, Checkpoints
from distill_engine.checkpoint.manifest import RefusedCheckpoint
from distill_engine.checkpoint.parts import JsonPart
from distill_engine.checkpoint.retention import Retention
from distill_engine.train.policies import KeepBest


class OneRank:
    """A run of one process; `world_size` may pretend otherwise."""

    rank = 0

    def __init__(self, world_size: int = 1) -> None:
        self.world_size = world_size

    def gather(self, value):
        return [value]


class Text:
    """A part with one file."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.fails: Exception | None = None

    def save(self, folder: Path) -> None:
        if self.fails:
            raise self.fails
        (folder / "text.txt").write_text(self.text)

    def load(self, folder: Path) -> None:
        self.text = (folder / "text.txt").read_text()


class Run:
    """One start of a program with one part."""

    def __init__(self, folder: Path, world_size: int = 1, **options) -> None:
        self.warnings: list[str] = []
        self.part = Text()
        options = {"identity": {"recipe": "a"}, "keep": Retention(2), "patience": 0.0, **options}
        self.checkpoints = Checkpoints(
            folder / "checkpoints", OneRank(world_size), warn=self.warnings.append, **options
        )

    def save(self, step: int, text: str) -> bool:
        self.part.text = text
        return self.checkpoints.save(step, {"model": self.part})

    def resume(self) -> int | None:
        return self.checkpoints.resume({"model": self.part})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_fresh_folder_has_nothing_to_resume(tmp_path):
    run = Run(tmp_path)
    assert run.checkpoints.latest_complete() is None
    assert run.resume() is None
    assert run.warnings == []


def test_round_trip_and_facts(tmp_path):
    assert Run(tmp_path, identity={"depth": (2, 9)}).save(123, "hello")
    run = Run(tmp_path, identity={"depth": [2, 9]})
    assert run.resume() == 123
    assert run.part.text == "hello"
    info = run.checkpoints.latest_complete()
    assert (info.step, info.world_size, info.parts, info.bytes) == (123, 1, ("model",), 5)
    assert info.folder == tmp_path / "checkpoints" / "step-00000123"
    manifest = json.loads((info.folder / "manifest.json").read_text())
    assert manifest["files"]["model/text.txt"]["bytes"] == 5
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000123\n"


def test_retention_keeps_the_newest_by_step_whatever_the_clock_says(tmp_path):
    run = Run(tmp_path)
    for step in (8, 9, 10, 100):
        run.save(step, str(step))
        os.utime(tmp_path / "checkpoints" / f"step-{step:08d}", (2e9 - step, 2e9 - step))
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000100"]
    assert Run(tmp_path).resume() == 100


def test_saving_the_same_step_again_replaces_it_without_a_moment_of_none(tmp_path):
    run = Run(tmp_path, keep=Retention(1))
    for text in ("first", "second", "third"):
        assert run.save(5, text)
    assert names(tmp_path) == ["latest", "step-00000005.2"]
    again = Run(tmp_path)
    assert again.resume() == 5 and again.part.text == "third"


def test_a_fallback_is_told_and_the_bad_one_goes_with_the_next_save(tmp_path):
    for step in (1, 2):
        Run(tmp_path).save(step, str(step))
    (tmp_path / "checkpoints" / "step-00000002" / "model" / "text.txt").write_text("x")
    run = Run(tmp_path)
    assert run.resume() == 1 and run.part.text == "1"
    assert run.warnings == [
        "Checkpoint step-00000002: model/text.txt differs from its digest: it was changed or damaged. "
        "It is not used; going back to step-00000001."
    ]
    run.save(2, "2")
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002.1"]


def damage_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BAD = {
    "extra file": (lambda f: (f / "model" / "more.pt").write_text("x"), "model/more.pt is not in its manifest.json"),
    "missing file": (lambda f: (f / "model" / "text.txt").unlink(), "model/text.txt is missing"),
    "longer": (lambda f: (f / "model" / "text.txt").write_text("longer"), "has 6 bytes, 5 were written"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
    "empty manifest": (lambda f: (f / "manifest.json").write_text(""), "cannot be read"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[]"), "cannot be read"),
    "other version": (lambda f: damage_manifest(f, version=9), "has version 9"),
    "edited manifest": (lambda f: damage_manifest(f, world_size=7), "differs from its own digest"),
    "renamed": (lambda f: f.rename(f.with_name("step-00000077")), "it is of step 5: it was renamed"),
    "link": (
        lambda f: (f / "model" / "text.txt").rename(f / "t") and (f / "model" / "text.txt").symlink_to(f / "t"),
        "model/text.txt is not a regular file",
    ),
    "a file instead": (lambda f: f.with_name("step-00000006").write_text("x"), "cannot be read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_verify_is_never_loaded_and_never_a_fresh_start(tmp_path, kind):
    do, reason = BAD[kind]
    Run(tmp_path).save(5, "hello")
    do(tmp_path / "checkpoints" / "step-00000005")
    if kind == "a file instead":
        run = Run(tmp_path)
        assert run.resume() == 5 and reason in run.warnings[0]
        return
    with pytest.raises(CheckpointError, match="None of the checkpoints") as caught:
        Run(tmp_path).resume()
    assert reason in str(caught.value)
    assert "--run-dir" in str(caught.value)


def test_every_byte_of_a_checkpoint_is_guarded(tmp_path):
    Run(tmp_path).save(5, "hello")
    folder = tmp_path / "checkpoints" / "step-00000005"
    for path in (folder / "model" / "text.txt", folder / "manifest.json"):
        whole = path.read_bytes()
        for position, byte in enumerate(whole):
            if chr(byte).isspace():
                continue
            path.write_bytes(whole[:position] + bytes([byte ^ 1]) + whole[position + 1 :])
            with pytest.raises(CheckpointError):
                Run(tmp_path).resume()
        path.write_bytes(whole)
    assert Run(tmp_path).resume() == 5


def test_leftovers_of_a_killed_run_are_removed_and_unknown_files_are_not(tmp_path):
    Run(tmp_path).save(5, "hello")
    folder = tmp_path / "checkpoints"
    for name in (".tmp-step-00000009", ".trash-step-00000001"):
        (folder / name / "model").mkdir(parents=True)
        (folder / name / "model" / "half.pt").write_text("x")
    (folder / ".latest.7-0123abcd.new").write_text("step-0")
    (folder / "step-5").mkdir()
    (folder / "notes.txt").write_text("mine")
    assert Run(tmp_path).resume() == 5
    assert names(tmp_path) == ["latest", "notes.txt", "step-00000005", "step-5"]


def test_looking_deletes_nothing(tmp_path):
    (tmp_path / "checkpoints" / ".tmp-step-00000009").mkdir(parents=True)
    assert Run(tmp_path).checkpoints.latest_complete() is None
    assert names(tmp_path) == [".tmp-step-00000009"]


def test_other_identity_lists_each_difference_and_only_those(tmp_path):
    Run(tmp_path, identity={"recipe": "a", "depth": 9, "gone": None, "same": [1]}).save(5, "x")
    with pytest.raises(CheckpointError, match="belongs to another run") as caught:
        Run(tmp_path, identity={"recipe": "b", "depth": 12, "new": True, "same": [1]}).resume()
    lines = str(caught.value).splitlines()[1:-1]
    assert lines == ["  depth: 9 -> 12", "  gone: null -> (absent)", "  new: (absent) -> true", '  recipe: "a" -> "b"']


def test_other_world_size_is_refused(tmp_path):
    Run(tmp_path).save(5, "x")
    with pytest.raises(CheckpointError, match=r"written by 1 ranks, this run has 4\..*--resize.*start it with 1 ranks"):
        Run(tmp_path, world_size=4).resume()
    run = Run(tmp_path, world_size=4, resize=True)
    assert run.resume() == 5 and run.part.text == "x"
    with pytest.raises(CheckpointError, match="belongs to another run"):
        Run(tmp_path, world_size=4, resize=True, identity={"recipe": "b"}).resume()


def test_other_parts_are_refused_by_name(tmp_path):
    Run(tmp_path).save(5, "x")
    with pytest.raises(CheckpointError, match="lacks scaler and has model besides"):
        Run(tmp_path).checkpoints.resume({"scaler": Text()})


def test_a_part_that_cannot_load_is_named(tmp_path):
    Run(tmp_path).save(5, "x")
    part = JsonPart(KeepBest("min"), rank=0)
    with pytest.raises(CheckpointError, match=r"rank 0: part model: FileNotFoundError.*state\.json"):
        Run(tmp_path).checkpoints.resume({"model": part})


def test_failures_are_counted_in_a_row_with_the_real_reason(tmp_path):
    run = Run(tmp_path, max_failed_saves=2)
    run.part.fails = RuntimeError("iostream error")
    assert not run.save(1, "x")
    assert "Checkpoint of step 1 was not written (failure 1 of 2 in a row)" in run.warnings[0]
    assert "rank 0: part model: RuntimeError: iostream error" in run.warnings[0]
    run.part.fails = None
    assert run.save(2, "x")
    run.part.fails = ValueError("a programming error is no reason to hang the other ranks")
    assert not run.save(3, "x")
    with pytest.raises(CheckpointError, match="failure 2 of 2 in a row"):
        run.save(4, "x")
    assert names(tmp_path) == ["latest", "step-00000002"]


def test_a_folder_deleted_during_the_run_is_made_again(tmp_path):
    run = Run(tmp_path)
    run.save(1, "x")
    (tmp_path / "checkpoints").rename(tmp_path / "gone")
    assert run.save(2, "y")
    assert names(tmp_path) == ["latest", "step-00000002"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB and 64 files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "size=1m,nr_inodes=64,mode=0700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_save_that_will_not_fit_is_given_up_before_it_begins(small_disk):
    """Too few bytes (a tenth to spare is asked for) or too few files for one more like the last."""
    run = Run(small_disk, keep=Retention(1))
    text = "x" * 300_000
    assert run.save(1, text)
    space = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize - 320_000))
    assert not run.save(2, text)
    assert "the last checkpoint took 293.0 KiB, " in run.warnings[-1] and "No space left" in run.warnings[-1]
    (small_disk / "filler").unlink()
    assert run.save(3, text)

    fillers = [small_disk / f"filler-{number}" for number in range(os.statvfs(small_disk).f_favail - 3)]
    for filler in fillers:
        filler.touch()
    assert not run.save(4, "x")
    assert "the last checkpoint has 4 files and folders, 3 more can be made" in run.warnings[-1]
    fillers[0].unlink()
    fillers[1].unlink()  # `latest` is replaced by a new file
    assert run.save(5, "x") and names(small_disk) == ["latest", "step-00000005"]
    assert Run(small_disk).resume() == 5


def test_files_are_never_left_writable_by_everybody(tmp_path):
    before = os.umask(0)
    try:
        run = Run(tmp_path)
        (tmp_path / "checkpoints").mkdir(mode=0o755)
        run.save(5, "x")
    finally:
        os.umask(before)
    assert Run(tmp_path).resume() == 5
    for path in (tmp_path / "checkpoints").rglob("*"):
        assert not path.stat().st_mode & stat.S_IWOTH, path


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


class Pickled:
    """A part that, like DeepSpeed, loads without restriction."""

    def __init__(self, value=None) -> None:
        self.value = value

    def save(self, folder: Path) -> None:
        torch.save(self.value, folder / "shard.pt")

    def load(self, folder: Path) -> None:
        self.value = torch.load(folder / "shard.pt", weights_only=False)


def test_a_hostile_pickle_is_refused_before_any_part_loads(tmp_path):
    canary = tmp_path / "canary"
    assert Run(tmp_path).checkpoints.save(5, {"model": Pickled(Hostile(canary))})
    with pytest.raises(CheckpointError, match=r"shard\.pt was not loaded.*system"):
        Run(tmp_path, allowed_globals=[]).checkpoints.resume({"model": Pickled()})
    assert not canary.exists()


def test_known_classes_are_loaded(tmp_path):
    assert Run(tmp_path).checkpoints.save(5, {"model": Pickled(KeepBest("min"))})
    part = Pickled()
    assert Run(tmp_path, allowed_globals=[KeepBest]).checkpoints.resume({"model": part}) == 5
    assert isinstance(part.value, KeepBest)


def others_writable(folder: Path) -> None:
    (folder / "checkpoints" / "step-00000005" / "manifest.json").chmod(0o666)


@pytest.mark.parametrize(
    ("change", "arguments", "refused"),
    [
        (others_writable, {}, True),
        (None, {"identity": {"recipe": "b"}}, True),
        (None, {"world_size": 4}, True),
        (lambda folder: (folder / "checkpoints" / "step-00000005" / "manifest.json").write_text("{}"), {}, False),
    ],
)
def test_what_no_further_start_would_change_is_told_apart(tmp_path, change, arguments, refused):
    Run(tmp_path).save(5, "x")
    if change is not None:
        change(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        Run(tmp_path, **arguments).resume()
    assert isinstance(caught.value, RefusedCheckpoint) == refused
