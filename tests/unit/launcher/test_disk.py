"""What a run keeps on the disk is computed from its recipe, on a login node, and asked for by the preflight."""

import io
import json

import pytest
from typer.testing import CliRunner

from distill_engine.cluster.exit_codes import FAILED
from launcher.__main__ import app
from launcher.disk import job_of_start, space_of
from launcher.preflight import NodeFacts

GIB = 2**30


@pytest.fixture
def files(root):
    return root / "recipes" / "bb3b_tinybert.yaml", root / "ds_configs" / "zero2.json"


@pytest.fixture
def report(files, tmp_path, monkeypatch):
    """preflight-report of one node with so many GiB free, as the job script calls it."""

    def run(gib_free: float, *options: str):
        monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
        line = NodeFacts("n1", (), {"python": "3"}, free_bytes=int(gib_free * GIB), seen=("n1",)).to_json()
        recipe, ds = files
        words = ["preflight-report", "--nodes=1", f"--run-dir={tmp_path}", f"--recipe={recipe}", f"--ds-config={ds}"]
        return CliRunner().invoke(app, [*words, "--", *options], input=io.StringIO(line + "\n").getvalue())

    return run


def test_the_flagships_checkpoints_are_computed(files):
    space = space_of(job_of_start(*files, []))
    assert space.most_kept == 2 and 3 * space.checkpoint == pytest.approx(65e9, rel=0.01)
    assert space.export * 7 < space.checkpoint < space.export * 10, "fp16; 14 bytes a weight, and the projections"
    options = [
        "--set",
        "checkpoint.keep_last=4",
        "--set=optimizer.name=sgd",
        "--set",
        "optimizer.amsgrad=false",
        "--teacher_ds_config",
        "x",
        "--resize",
    ]
    changed = space_of(job_of_start(*files, options))
    assert changed.most_kept == space.most_kept + 4 - space.keep.last
    assert changed.checkpoint < space.checkpoint, "sgd has fewer moments"


def test_the_preflight_asks_for_one_save_and_says_what_all_take(report, files):
    space = space_of(job_of_start(*files, []))
    little, some, enough = space.least / GIB - 1, space.least / GIB + 1, space.needed(0, 0) / GIB + 1
    refused = report(little)
    assert refused.exit_code == FAILED and "Not even one of each fits" in refused.stderr, refused.output
    warned = report(some)
    assert warned.exit_code == 0 and "preflight: warning: " in warned.output and "1 nodes passed" in warned.output
    fits = report(enough)
    assert fits.exit_code == 0 and "warning" not in fits.output and "a checkpoint takes" in fits.output
    assert report(enough, "--set", "checkpoint.keep_last=9").output.startswith("preflight: warning: ")


def test_a_recipe_that_cannot_be_read_is_left_to_the_start(report):
    said = report(0, "--set", "student.wdith=3")
    assert said.exit_code == 0 and "the start will say it" in said.output


def test_the_plan_says_it_too(files, tmp_path):
    file = tmp_path / "plan.json"
    said = CliRunner().invoke(app, ["plan", str(files[0]), "--nodes", "4", "--json", str(file)])
    disk = json.loads(file.read_text())["disk_bytes"]
    space = space_of(job_of_start(*files, []))
    assert disk == {"checkpoint": space.checkpoint, "export": space.export, "run folder": space.needed(0, 0)}
    assert f"run folder: up to {disk['run folder'] / GIB:.1f} GiB: a checkpoint takes" in said.output
