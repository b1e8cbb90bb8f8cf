"""A start imports what the first step needs; what only reports, evaluations and dashboards need waits for them."""

import json
import subprocess
import sys

from distill_engine.telemetry.jsonl import read_history

LATER = (
    "matplotlib", "sacrebleu", "lxml", "portalocker", "wandb", "sklearn", "scipy", "pandas", "datasets", "tensorboard",
    "nltk", "IPython", "pyarrow", "distill_engine.reports", "distill_engine.evaluate.compare",
    "distill_engine.evaluate.latency",
)  # fmt: skip

# Whose modules a first step needs beside those that torch, DeepSpeed and the models of transformers import: nine in ten
# of a start's imports are theirs (docs/cluster.md).
OWN = {"distill_engine", "rich", "pydantic", "markdown_it", "mdurl", "pygments"}
# What the three import once more when they are first used: the compiler's back ends for DeepSpeed's Muon, its builders;
# and numpy, which torch imports but for its types.
THEIRS = {
    "torch", "numpy", "deepspeed", "transformers", "functorch", "sympy", "networkx", "triton", "setuptools",
    "packaging", "distutils", "_distutils_hack", "jaraco", "backports", "more_itertools",
}  # fmt: skip

# Trains; says what the three import by themselves, what is imported when the first step begins, and at the end.
PROGRAM = """
import json, sys
import torch, deepspeed, transformers.integrations.deepspeed
from transformers import AutoTokenizer, BartForConditionalGeneration, BlenderbotForConditionalGeneration
print("BARE", json.dumps(sorted(sys.modules)), flush=True)
from distill_engine.run import main
from distill_engine.train.loop import Trainer

def told(trainer, step=Trainer._step):
    if trainer.progress.steps == 0:
        print("FIRST", json.dumps(sorted(sys.modules)), flush=True)
    step(trainer)

Trainer._step = told
code = main(sys.argv[1:])
print("LAST", json.dumps(sorted(sys.modules)), flush=True)
sys.exit(code)
"""


def test_before_the_first_step_nothing_is_imported_that_it_does_not_need(
    program, base_recipe, write_recipe, fp32, tmp_path
):
    recipe = base_recipe()
    recipe["stop"] = {"max_steps": 2}
    recipe["logging"]["wandb"] = {"mode": "offline"}
    words = ["--recipe", write_recipe(recipe), "--ds_config", fp32, "--run-dir", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
        env=program.environment() | {"HOME": str(tmp_path), "PYTHONPATH": str(fp32.parents[1])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    words = ("BARE", "FIRST", "LAST")
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.split(" ", 1)[0] in words)
    bare, first, last = (set(json.loads(lines[word])) for word in words)
    assert bare < first and "distill_engine.assembly.launch" in first, "the run was watched"
    assert [name for name in LATER if name in first] == []
    packages = {name.split(".")[0] for name in first - bare}
    assert packages - sys.stdlib_module_names <= OWN | THEIRS, packages - sys.stdlib_module_names - OWN - THEIRS
    assert "wandb" in last, "from the first record on"
    records = read_history(tmp_path / "run" / "metrics.jsonl")
    assert [record.step for record in records if record.kind == "train"] == [1, 2]
