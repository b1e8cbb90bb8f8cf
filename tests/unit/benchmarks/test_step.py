"""benchmarks/step.py on its smallest preset: a real run, every field, and the arithmetic against a count by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import step_presets

ROOT = Path(__file__).resolve().parents[3]
FIELDS = {
    "preset", "precision", "definition", "ranks", "threads", "steps", "seconds_per_step", "p20", "p80",
    "tokens_per_second", "peak_memory_mib", "arithmetic_gflop", "matmul_gflops", "floor_seconds", "ratio_to_floor",
    "time_shares", "machine",
}  # fmt: skip


def run(*arguments: str, launcher: tuple[str, ...] = (sys.executable,)) -> dict:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [*launcher, str(ROOT / "benchmarks" / "step.py"), *arguments],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout  # nothing but the result, whatever libraries print
    return json.loads(lines[0])


def test_one_rank_gives_one_complete_line():
    result = run("--preset", "tiny", "--steps", "4")
    assert set(result) == FIELDS
    assert (result["preset"], result["precision"], result["ranks"], result["steps"]) == ("tiny", "fp32", 1, 4)
    assert result["threads"] == 1  # the preset's, not the machine's
    assert 0 < result["p20"] <= result["seconds_per_step"] <= result["p80"]
    assert result["tokens_per_second"] == pytest.approx(4 * (16 + 8) / result["seconds_per_step"])
    assert result["floor_seconds"] == pytest.approx(result["arithmetic_gflop"] / result["matmul_gflops"])
    assert result["ratio_to_floor"] == pytest.approx(result["seconds_per_step"] / result["floor_seconds"])
    assert result["ratio_to_floor"] > 1
    assert result["peak_memory_mib"] > 100  # a process with torch in it
    shares = result["time_shares"]
    assert set(shares) == {"teacher", "student", "losses", "backward", "optimizer", "data", "other"}
    assert sum(shares.values()) == pytest.approx(1) and all(share > 0 for share in shares.values())
    assert result["machine"]["versions"]["torch"]


@pytest.mark.multiprocess
def test_two_ranks_in_bf16_print_one_line_for_both():
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    result = run("--preset", "tiny", "--precision", "bf16", "--steps", "2", launcher=torchrun)
    assert (result["ranks"], result["precision"]) == (2, "bf16")
    assert result["tokens_per_second"] == pytest.approx(2 * 4 * (16 + 8) / result["seconds_per_step"])


def test_arithmetic_of_the_presets():
    # tiny by hand: 4 examples of 16 context and 8 label tokens; multiply-adds of one forward pass
    def forward(d: int, f: int, decoder_layers: int) -> float:
        encoder = 64 * (4 * d * d + 2 * d * f) + 4 * 2 * 16 * 16 * d
        decoder = 32 * (4 * d * d + 2 * d * d + 2 * d * f) + 64 * 2 * d * d + 4 * 2 * (36 + 8 * 16) * d
        return encoder + decoder_layers * decoder + 32 * d * 64

    projections = (64 * 2 + 32 * 2) * 16 * 32
    by_hand = 2 * (forward(32, 64, 2) + 3 * (forward(16, 32, 1) + projections)) / 1e9
    assert step_presets.arithmetic_gflop(step_presets.PRESETS["tiny"]) == pytest.approx(by_hand)
    # the issue that asks for this preset counts about 165
    assert step_presets.arithmetic_gflop(step_presets.PRESETS["parlai_cpu"]) == pytest.approx(165, rel=0.02)
