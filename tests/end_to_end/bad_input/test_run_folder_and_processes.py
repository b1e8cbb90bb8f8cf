"""Run folders that cannot be used; and bad input as users meet it, with the program in processes of its own."""

import subprocess
from pathlib import Path

import pytest

from distill_engine.cluster.exit_codes import RETRY


def test_the_run_folder_is_a_file(case, call, complaints):
    case.run_dir.write_text("not a folder")
    complaints(*call(), [str(case.run_dir), "cannot be used", "--run-dir"])
    assert case.run_dir.read_text() == "not a folder"


def test_the_run_folder_cannot_be_made(case, call, complaints):
    case.run_dir = Path("/proc/nobody/can/write")
    complaints(*call(), ["/proc/nobody/can/write", "cannot be used", "--run-dir"])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave_pages: int):
    pages = (64 >> 2) - leave_pages
    (folder / "filling").write_bytes(b"x" * (pages << 12))


@pytest.mark.parametrize("leave_pages", [0, 1], ids=["from the start", "after the lock"])
def test_the_run_folder_is_full(case, call, small_disk, leave_pages, complaints):
    fill(small_disk, leave_pages)
    case.run_dir = small_disk / "run"
    complaints(*call(), [str(case.run_dir), "cannot be used", "No space left", "may pass"], RETRY)


def test_the_run_folder_is_read_only(case, call, small_disk, complaints):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    case.run_dir = small_disk
    complaints(*call(), [str(case.run_dir), "Read-only file system", "--run-dir"], RETRY)


# ---- as users start it -------------------------------------------------------------------------------------------


def test_a_bad_recipe_dies_before_anything_heavy_is_loaded(case, program, write_recipe, complaints):
    case.set("student.encoder_layer", 1)
    recipe = write_recipe(case.recipe)
    ended = program.run("--recipe", recipe, "--run-dir", case.run_dir, env={"PYTHONPROFILEIMPORTTIME": "1"}, cold=True)
    imported = {line.rpartition("|")[2].strip() for line in ended.err.splitlines() if line.startswith("import time:")}
    assert "pydantic" in imported and not imported & {"torch", "deepspeed", "transformers"}
    said = "\n".join(line for line in ended.err.splitlines() if not line.startswith("import time:"))
    complaints(ended.code, said, ["Did you mean encoder_layers?"])
    assert not case.run_dir.exists()


def test_two_ranks_end_together_with_one_message(case, program, write_recipe, fp32, complaints):
    """The reason is found on rank 0 while rank 1 waits for it."""
    case.lines("text:hello\tlabels:hi there\nnonsense\n")
    recipe = write_recipe(case.recipe)
    ended = program.run("--recipe", recipe, "--run-dir", case.run_dir, "--ds_config", fp32, ranks=2)
    complaints(ended.code, ended.said, ["own.txt, line 2"])
    assert ended.said.count("own.txt, line 2") == 1


def test_two_ranks_refuse_a_teacher_without_a_tensor(case, program, write_recipe, fp32, complaints):
    """A random student copies nothing, so the teacher's engine has to notice."""
    case.drop_tensor("model.decoder.layers.0.fc1.weight")
    case.set("student.init", "random")
    recipe = write_recipe(case.recipe)
    ended = program.run("--recipe", recipe, "--run-dir", case.run_dir, "--ds_config", fp32, ranks=2)
    complaints(ended.code, ended.said, ["teacher.path", "missing", "random numbers"])
    assert ended.said.count("model.decoder.layers.0.fc1.weight") == 1


def test_a_teacher_with_tensors_of_another_size_is_refused(case, program, write_recipe, fp32, complaints):
    case.change_config(decoder_ffn_dim=60)
    case.set("student.init", "random")
    ended = program.run("--recipe", write_recipe(case.recipe), "--run-dir", case.run_dir, "--ds_config", fp32)
    complaints(ended.code, ended.said, ["teacher.path", "fc1", "config.json"])
