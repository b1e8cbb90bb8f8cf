"""`distill cache`, then a run without a teacher in memory: the numbers of the run with one."""

import json

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
    """To the bit: all batches have one shape, that of the passes which the cache was made in."""
    made = base_recipe()
    made["losses"]["weights"] |= {"encoder": 1.0, "cross_attention": 1.0}
    made["batch"] = {"per_rank": 4, "pad_to_multiple_of": 48}
    made["validation"] = {"every_steps": 3, "samples": 0}
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
    refused = program.run(*cached, "--set", "data.label_tokens=20", "--run-dir", tmp_path / "other")
    assert refused.code == 78 and "does not hold, with these token ids and limits: talk, train" in refused.err
