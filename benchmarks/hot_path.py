"""What a training step asks of host and network: `python benchmarks/hot_path.py` ends with one JSON line.

Counted, not timed, on two CPU ranks: the trainer's own step with the terms of recipes/bb3b_tinybert.yaml, models of its
depths but tiny, bf16, teacher under ZeRO-3, buckets shrunk with the layers. A wait of the host lets the device run
dry. What was counted goes to stderr, by name and rank.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_engine.engine.distributed import Ranks

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2
ACCUMULATION = (1, 8)
TIMEOUT_SECONDS = 500
SIZES = {"width": 32, "ffn_width": 64, "encoder_layers": 2, "decoder_layers": 24}  # of the teacher; the depths are real
SCALE = (8 * 2560**2 + 2 * 2560 * 10240) / (8 * 32**2 + 2 * 32 * 64)  # of a decoder layer, real to tiny
BUCKETS = (
    "reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size", "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)  # fmt: skip


def recipe_overrides(accumulation: int) -> dict[str, Any]:
    """What makes the recipe tiny and leaves its terms, maps and depths alone."""
    return {
        "student.width": 32, "student.ffn_width": 64, "student.heads": 2, "batch.per_rank": 2,
        "batch.accumulation_steps": accumulation, "data.context_tokens": 16, "data.label_tokens": 16,
        "student.positions": 16, "data.datasets": '[{"name": "demo"}]',
    }  # fmt: skip


def shrink(config: dict[str, Any]) -> None:
    """Buckets that hold as many layers as those of the real run do (aligned as DeepSpeed asks); vectors persist,
    matrices do not."""
    block = config["zero_optimization"]
    block |= {name: round(block[name] / SCALE / 16) * 16 for name in BUCKETS if name in block}
    if "stage3_param_persistence_threshold" in block:
        block["stage3_param_persistence_threshold"] = SIZES["ffn_width"]


def count(accumulation: int, ranks: Ranks) -> dict[str, Any]:
    """Waits and collectives of one optimizer step, in this process group, by name."""
    import step
    from hot_path_waits import HostWaits
    from step_presets import Preset, Size

    from distill_engine.recipe.load import load_recipe

    size = Size(**SIZES)
    preset = Preset(size, size, heads=2, vocabulary=64, batch=2, context_tokens=16, label_tokens=16, definition="")
    overrides = [f"{key}={value}" for key, value in recipe_overrides(accumulation).items()]
    recipe = load_recipe(ROOT / "recipes" / "bb3b_tinybert.yaml", overrides)
    configs = step.ds_configs(recipe, "bf16", ranks)
    for config in configs:
        shrink(config)
    with step.trainer_of(recipe, preset, configs, ranks) as trainer:
        for _ in range(2):  # what is made once is there, and DeepSpeed knows the order of the teacher's layers
            trainer._step()
        with HostWaits() as counted:
            trainer._step()
        applied = trainer.progress.steps
    if applied != 3:
        raise SystemExit(f"{applied} of 3 steps were applied: a gradient was not finite.")
    return {"waits": dict(counted.found), "collectives": dict(counted.collectives)}


def count_on_ranks() -> dict[str, list[dict[str, Any]]]:
    """By accumulation, what each rank counted; one start of the ranks counts all."""
    with tempfile.TemporaryDirectory() as folder:
        clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
        quiet = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*command, __file__, "--worker", folder], env=clean | quiet, stdout=sys.stderr, check=True,
            timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        of_ranks = [json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]
    return {str(accumulation): [rank[str(accumulation)] for rank in of_ranks] for accumulation in ACCUMULATION}


def work(folder: Path) -> None:
    """One rank: count, and leave it in the folder."""
    from distill_engine.engine import distributed

    ranks = distributed.start()
    counted = {str(accumulation): count(accumulation, ranks) for accumulation in ACCUMULATION}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(counted), encoding="utf-8")


def loss_launches() -> int:
    """Of losses and meter; see loss_launches.py, which interprets Triton's kernels in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "loss_launches.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=TIMEOUT_SECONDS)
    launches: int = json.loads(done.stdout.splitlines()[-1])["loss_launches_per_micro_batch"]
    return launches


def main() -> int:
    """Count, and print one JSON line."""
    parser = argparse.ArgumentParser(description="Host waits, launches and collectives of a training step.")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if asked.worker is not None:
        work(asked.worker)
        return 0
    of_ranks = count_on_ranks()
    for accumulation, ranks in of_ranks.items():
        for rank, counted in enumerate(ranks):
            sys.stderr.write(f"accumulation {accumulation}, rank {rank}: {counted}\n")
    result = {
        "host_waits_per_step": {
            accumulation: max(sum(counted["waits"].values()) for counted in ranks)
            for accumulation, ranks in of_ranks.items()
        },
        "loss_launches_per_micro_batch": loss_launches(),
        "collectives_per_step": max(sum(counted["collectives"].values()) for counted in of_ranks["1"]),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
