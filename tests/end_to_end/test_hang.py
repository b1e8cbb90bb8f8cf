"""A run that hangs on one rank, or that diverges, ends by itself and says where and why."""

import json
import re

import torch

from distill_engine.cluster.exit_codes import FAILED, HUNG, STOPPED_AND_SAVED, read_verdict
from distill_engine.telemetry.jsonl import read_history


def test_a_rank_that_hangs_ends_the_job_with_the_stacks_of_all(program, base_recipe, write_recipe, fp32, tmp_path):
    folder, verdict = tmp_path / "run", tmp_path / "verdict"
    arguments = ["--recipe", write_recipe(base_recipe()), "--ds_config", fp32, "--run-dir", folder]
    env = {"DISTILL_FAULT": "hang:in_step@1#3", "DISTILL_VERDICT": str(verdict)}
    run = program.start(*arguments, "--set", "stop.hang_seconds=3", ranks=2, env=env)
    history = folder / "metrics.jsonl"
    run.until(lambda: history.exists() and len(read_history(history)) >= 2, "step 2")
    ended = run.ended()  # within minutes, not the half hour of a collective
    assert ended.code == STOPPED_AND_SAVED, ended.said
    stacks = {rank: (folder / "hang" / f"rank_{rank}.txt").read_text() for rank in (0, 1)}
    for rank, text in stacks.items():
        assert f"rank {rank} of 2" in text and "in phase 'data' of optimizer step 3" in text
        assert f"rank {rank} of 2" in ended.err and "stop.hang_seconds: 3" in ended.err
    assert "in _hang" in stacks[1] and "in fault_point" in stacks[1]
    assert "in all_reduce" in stacks[0] and "in divisors" in stacks[0]
    told = [line for line in ended.err.splitlines() if line.startswith("[watchdog] hung: ")]
    assert len(told) == 1, ended.err
    assert re.search(r"rank 1 \(\S+\) is behind: it has begun our collective \d+, others \d+ \(sum\)", told[0]), told
    assert told[0].endswith("it was in phase 'data' of optimizer step 3") and told[0] in stacks[1]
    positions = [json.loads((folder / "hang" / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    begun = [position["tracks"]["own"]["number"] for position in positions]
    assert begun[0] == begun[1] + 1
    if hasattr(torch._C._distributed_c10d, "_dump_fr_trace"):  # this release of torch records gloo's collectives too
        assert positions[0]["tracks"]["0"]["number"] > positions[1]["tracks"]["0"]["number"] > 0
        flights = [(folder / "hang" / f"flight_rank_{rank}").read_bytes() for rank in (0, 1)]
        assert all(b"all_reduce" in content for content in flights)
    assert read_verdict(verdict) == (STOPPED_AND_SAVED, HUNG)


def test_a_run_that_diverges_names_the_terms(program, base_recipe, write_recipe, fp32, tmp_path):
    recipe = base_recipe()
    recipe["optimizer"] |= {"learning_rate": 1e30, "clip_norm": None}
    recipe["stop"] |= {"max_skipped_steps": 3, "hang_seconds": None}
    arguments = ["--recipe", write_recipe(recipe), "--ds_config", fp32, "--run-dir", tmp_path / "run"]
    ended = program.run(*arguments, ranks=2)
    assert ended.code == FAILED and "Traceback" not in ended.said, ended.said
    told = [line for line in ended.said.splitlines() if "was skipped: not finite were task (NaN in" in line]
    assert told and len(told) == len(set(told)), "one rank speaks"
    assert all("layer" in line.partition(" In the student ")[2] for line in told), "where it began"
    error = next(line for line in ended.err.splitlines() if line.startswith("TrainingError"))
    assert "3 optimizer steps in a row were skipped" in error and "decoder_hidden (layers 0, 1; NaN" in error
    assert "micro-batches of ranks 0, 1)" in error
