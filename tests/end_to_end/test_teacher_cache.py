"""`distill cache`, then a run without a teacher in memory: the numbers of the run with one."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from distill_engine.cluster.exit_codes import RETRY

OF_LEARNING = ("train/", "valid/")


def values(folder, kind):
    """What was recorded, but times and speeds."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in one["values"].items() if name.startswith(OF_LEARNING) and "second" not in name}
        for one in records
        if one["kind"] == kind
    ]


def test_two_ranks_learn_from_files_as_from_the_teacher_and_another_recipe_is_refused(
    program, base_recipe, write_recipe, fp32, tmp_path
):
    """To the bit: all batches have one shape, that of the passes which the cache was made in. Weights are balanced by
    their terms' gradients, and one rank goes on where two ended."""
    made = base_recipe()
    made["losses"]["weights"] |= {"encoder": 1.0, "cross_attention": 1.0}
    made["batch"] = {"per_rank": 4, "pad_to_multiple_of": 48}
    made["validation"] = {"every_steps": 3, "samples": 0}
    made["losses"]["balance"] = "gradient_norm"
    made["stop"]["max_steps"] = 3
    recipe, cache = write_recipe(made), tmp_path / "cache"
    done = program.distill("cache", recipe, "--out", cache, "--k", "all")
    assert done.returncode == 0 and "are to be written for 69 examples" in done.stderr, done.stderr

    start = ("--recipe", recipe, "--ds_config", fp32)
    program.run(*start, "--run-dir", tmp_path / "live", "--set", "teacher.placement=replica", ranks=2).well()
    made["teacher"] |= {"source": "cache", "cache": str(cache)}
    cached = ("--recipe", write_recipe(made), "--ds_config", fp32, "--run-dir", tmp_path / "cached")
    program.run(*cached, ranks=2).well()
    for kind, count in (("train", 3), ("valid", 1)):
        live, ours = values(tmp_path / "live", kind), values(tmp_path / "cached", kind)
        assert len(live) == count and len(live[0]) > 8
        assert live == ours
    for name, start_of in (("live", (*start, "--set", "teacher.placement=replica")), ("cached", cached[:4])):
        more = ("--run-dir", tmp_path / name, "--set", "stop.max_steps=5", "--resize")
        assert "resumed after step 3" in program.run(*start_of, *more).well().said
    live, ours = (values(tmp_path / name, "train") for name in ("live", "cached"))
    assert len(live) == len(ours) == 5 and live[:3] == ours[:3]
    assert any(name.startswith("train/balance/") for name in live[4])
    for one, other in zip(live, ours, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    refused = program.run(*cached, "--set", "data.label_tokens=20", "--run-dir", tmp_path / "other")
    assert refused.code == 78 and "does not hold, with these token ids and limits: talk, train" in refused.err


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".work" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_one_two_and_three_ranks_and_ten_kills_leave_the_same_bytes(
    starts, program, base_recipe, write_recipe, tmp_path
):
    made = base_recipe()
    made["data"]["cache_dir"] = str(tmp_path / "tokens")
    recipe = str(write_recipe(made))

    def arguments(name: str) -> list[str]:
        return ["cache", recipe, "--out", str(tmp_path / name), "--k", "8", "--shard-mib", "0.01", "--dtype", "bf16"]

    whole = starts(arguments("one"), [0])
    assert whole["codes"] == [0], whole
    wanted, shards = tree(tmp_path / "one"), len(list((tmp_path / "one").glob("*/0*")))
    assert shards > 12
    for ranks, name in ((2, "two"), (3, "three")):
        assert starts(arguments(name), [0] * ranks)["codes"] == [0] * ranks
        assert tree(tmp_path / name) == wanted

    draw, kills = random.Random(5), 0
    while kills < 10:
        left = 1 - len(list((tmp_path / "killed").glob("*/0*"))) / shards
        ranks = 1 + (kills % 3 == 2)  # every third start has two
        last = max(40, int(0.4 * left * whole["lines"][0] / ranks))
        ended = starts(arguments("killed"), [draw.randrange(1, last) for _ in range(ranks)])
        assert set(ended["codes"]) == {-9}, ended
        kills += 1
    assert 0 < left < 1, "some shards were made meanwhile, not all"
    assert starts(arguments("killed"), [0])["codes"] == [0]
    assert tree(tmp_path / "killed") == wanted

    # where no launcher ends the others, rank 0 finds out that rank 1 is dead
    assert starts(arguments("alone"), [0, whole["lines"][0] // 5], launcher=False)["codes"] == [RETRY, -9]
    said = (tmp_path / "alone" / ".work" / "rank-0.failed").read_text()
    assert "shards will not come: rank 1 of 2 gave no sign of life" in said
    # a real launcher, from nothing, makes the rest
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "distill_engine.cli"]
    command = [sys.executable, *torchrun, *arguments("alone")]
    done = subprocess.run(command, capture_output=True, text=True, env=program.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert tree(tmp_path / "alone") == wanted
