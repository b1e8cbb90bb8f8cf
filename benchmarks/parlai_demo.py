"""ParlAI's distillation and this one on the same data: the demo's, by turns on the same processor cores.

    python benchmarks/parlai_demo.py --parlai-python PYTHON [--rows parlai ours_same ours] [--seeds 1] [--threads 2]

PYTHON is an interpreter that can import ParlAI (docs/parlai.md says how to make one). The demo's teacher is exported by
`distill export --format parlai`, its dialogues are written in ParlAI's text format, and ParlAI's own
DistillTransformerAgent learns from them in ParlAI's own training loop; so does this engine, with the same student,
learning rate, batch and number of steps, one process each. The last line of standard output is one JSON object; the
same goes to benchmarks/results/parlai_demo.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from runs import DEMO_RECIPE, ROOT, RunFailedError
from turns import Course, Program, course, take_turns

from distill_engine.recipe.rules import read_recipe
from distill_engine.recipe.schema import Recipe
from distill_engine.telemetry.machine import machine_record

TEACHER = ROOT / "recipes" / "demo" / "teacher"
SIDE = Path(__file__).resolve().with_name("parlai_side.py")
RESULT = ROOT / "benchmarks" / "results" / "parlai_demo.json"
STEPS, VALIDATE_EVERY, THIRD = 400, 100, 300
# What the demo's recipe has on two ranks, on one; the schedule ends at 0, as ParlAI's does.
_COMMON = ("batch.per_rank=64", "schedule.final_share=0", "teacher.placement=replica", "logging.every_steps=10",
           "validation.samples=0")  # fmt: skip
# ParlAI's agent for copied layers has four terms, and starts the final norms anew; torch's AdamW decays by 0.01.
_PARLAIS = (
    "losses.definition=parlai",
    "student.copy_final_norms=false",
    "student.encoder_init_map=parlai",
    "student.decoder_init_map=parlai",
    "optimizer.weight_decay=0.01",
    *(f"losses.weights.{term}=0" for term in ("embedding", "self_attention", "cross_attention")),
)
ROWS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "parlai": ("ParlAI", "", ()),
    "ours_same": ("ours, ParlAI's losses and start", "zero2_fp32.json", _PARLAIS),
    "ours": ("ours, the demo's recipe", "zero2_fp32.json", ()),
    "ours_buckets": ("the same, batches of about one length", "zero2_fp32.json", ("batch.max_tokens=5000",)),
    "ours_bf16": ("the demo's recipe in bf16", "zero2_bf16.json", ()),
}


def main() -> int:
    """Run, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parlai-python", type=Path, required=True, help="an interpreter that can import ParlAI")
    parser.add_argument("--rows", nargs="*", choices=tuple(ROWS), default=["parlai", "ours_same", "ours"])
    parser.add_argument("--seeds", type=int, default=1, help="seeds 1 to N of each (1)")
    parser.add_argument("--threads", type=int, default=2, help="of each process (2)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"stop after so many of the schedule's {STEPS}")
    parser.add_argument("--turn", type=float, default=5.0, help="seconds that a program runs while the others wait (5)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "parlai_demo", help="runs, removed at the start")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result as JSON")
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    write_inputs(given.folder)
    by_row: dict[str, list[dict[str, Any]]] = {row: [] for row in given.rows}
    try:
        for seed in range(1, given.seeds + 1):
            found = one_seed(given, seed)
            for row in given.rows:
                by_row[row].append(found[row])
    except RunFailedError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        return 1
    result = {
        "rows": {row: summarised(of_seeds) for row, of_seeds in by_row.items()},
        "seeds": given.seeds, "threads": given.threads, "turn_seconds": given.turn, "machine": machine_record(),
    }  # fmt: skip
    show(result["rows"])
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def one_seed(given: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """All rows of one seed, by turns."""
    programs = [program(row, given, seed) for row in given.rows]
    take_turns(programs, given.turn)
    wall = {one.name: course(one.marks, "seconds") for one in programs}
    cpu = {one.name: course(one.marks, "cpu_seconds") for one in programs}
    goal = ParlAIs.of(wall.get("parlai"), cpu.get("parlai"))
    return {row: measured(wall[row], cpu[row], goal) for row in given.rows}


class ParlAIs:
    """What ParlAI's third validation said, and when."""

    def __init__(self, ppl: float, seconds: float, cpu_seconds: float) -> None:
        self.ppl, self.seconds, self.cpu_seconds = ppl, seconds, cpu_seconds

    @classmethod
    def of(cls, wall: Course | None, cpu: Course | None) -> ParlAIs | None:
        """None where ParlAI did not run, or not so far."""
        if wall is None or cpu is None or THIRD not in wall.reached:
            return None
        return cls(wall.reached[THIRD][0], wall.reached[THIRD][1], cpu.reached[THIRD][1])


def measured(wall: Course, cpu: Course, goal: ParlAIs | None) -> dict[str, Any]:
    """The numbers of one run; `share_of_parlai` is its time to ParlAI's third perplexity, ParlAI's being 1."""
    row: dict[str, Any] = {
        "valid_ppl": {str(step): ppl for step, (ppl, _) in wall.reached.items()},
        "seconds_per_step": wall.per_step,
        "cpu_seconds_per_step": cpu.per_step,
    }
    if goal is not None:
        reached, spent = wall.time_to(goal.ppl), cpu.time_to(goal.ppl)
        row |= {
            "seconds_to_third": reached,
            "cpu_seconds_to_third": spent,
            "share_of_parlai": None if reached is None else reached / goal.seconds,
            "cpu_share_of_parlai": None if spent is None else spent / goal.cpu_seconds,
        }
    return row


def summarised(of_seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds; of values that one seed lacks, None."""

    def middle(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: middle([value.get(key) for value in values]) for key in values[0]}
        return None if None in values else statistics.median(values)

    return {key: middle([row.get(key) for row in of_seeds]) for key in of_seeds[0]}


# ---- programs and what they read ---------------------------------------------------------------------------------
def write_inputs(folder: Path) -> None:
    """The teacher in ParlAI's format and the dialogues of both splits. Raises CalledProcessError."""
    command = [sys.executable, "-m", "distill_engine.cli", "export", str(TEACHER), str(folder / "teacher")]
    subprocess.run([*command, "--format", "parlai"], check=True, cwd=ROOT)
    recipe = read_recipe(DEMO_RECIPE, [])
    for split in ("train", "valid"):
        text = "".join(f"{line}\n" for line in dialogue_lines(recipe, split))
        (folder / f"demo_{split}.txt").write_text(text, encoding="utf-8")


def dialogue_lines(recipe: Recipe, split: str) -> Iterator[str]:
    """The demo's dialogues in ParlAI's text format."""
    from distill_engine.data.corpora.demo import demo_episodes

    dataset: Any = recipe.data.datasets[0]
    count = dataset.train_examples if split == "train" else dataset.valid_examples
    for episode in demo_episodes(split, count, dataset.seed):  # type: ignore[arg-type]
        for number, turn in enumerate(episode.turns, start=1):
            last = "\tepisode_done:True" if number == len(episode.turns) else ""
            yield f"text:{_escaped(turn.text)}\tlabels:{_escaped(turn.label)}{last}"


def _escaped(text: str) -> str:
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("|", "__PIPE__")


def program(row: str, given: argparse.Namespace, seed: int) -> Program:
    """The training run of one row."""
    folder = given.folder / f"{row}-{seed}"
    folder.mkdir()
    environment = {"OMP_NUM_THREADS": str(given.threads), "MKL_NUM_THREADS": str(given.threads)}
    if row == "parlai":
        flags = parlai_flags(read_recipe(DEMO_RECIPE, _COMMON), given.folder, folder, seed)
        steps = min(given.steps, THIRD)  # in its last step ParlAI's loop ends without a validation
        command = [given.parlai_python, SIDE, "train", folder / "log.jsonl", steps, "--", *flags]
        log, read = folder / "log.jsonl", _parlais_line
    else:
        _, ds_config, overrides = ROWS[row]
        own = (*_COMMON, *overrides, f"seed={seed}", f"name=demo-{row.replace('_', '-')}", f"stop.max_steps={STEPS}")
        if given.steps < STEPS:
            own = (*own, f"schedule.total_steps={STEPS}", f"stop.max_steps={given.steps}")
        command = [sys.executable, "-m", "distill_engine.cli", "train", "--recipe", DEMO_RECIPE, "--ds-config",
                   ROOT / "ds_configs" / ds_config, "--run-dir", folder / "run"]  # fmt: skip
        command += [word for override in own for word in ("--set", override)]
        log, read = folder / "run" / "metrics.jsonl", _our_line
    return Program(row, [str(word) for word in command], log, read, environment, folder / "output.txt")


def parlai_flags(recipe: Recipe, inputs: Path, folder: Path, seed: int) -> list[str]:
    """The recipe in ParlAI's words (docs/parlai.md has the table)."""
    student, data, weights = recipe.student, recipe.data, recipe.losses.weights
    truncate = max(data.context_tokens, data.label_tokens)
    flags: dict[str, Any] = {
        "task": "fromfile:parlaiformat", "fromfile-datapath": inputs / "demo", "fromfile-datatype-extension": True,
        "model": "projects.anti_scaling.distillation:DistillTransformerAgent",
        "teacher-model": inputs / "teacher" / "model", "dict-file": inputs / "teacher" / "model.dict",
        "dict-tokenizer": "bytelevelbpe", "bpe-add-prefix-space": False, "model-file": folder / "model",
        "datapath": folder / "data",
        "embedding-size": student.width, "ffn-size": student.ffn_width, "n-heads": student.heads,
        "n-encoder-layers": student.encoder_layers, "n-decoder-layers": student.decoder_layers,
        "n-positions": student.positions, "variant": "prelayernorm", "activation": "gelu", "embeddings-scale": True,
        "learn-positional-embeddings": False, "dropout": 0, "attention-dropout": 0, "relu-dropout": 0,
        "delimiter": data.delimiter, "history-add-global-end-token": "end" if data.history_end_token else None,
        "text-truncate": data.context_tokens, "label-truncate": data.label_tokens, "truncate": truncate,
        "task-loss-coeff": weights["task"], "encoder-loss-coeff": weights["encoder"],
        "hidden-loss-coeff": weights["hidden"], "pred-loss-coeff": weights["prediction"],
        "batchsize": recipe.batch.per_rank, "optimizer": recipe.optimizer.name,
        "learningrate": recipe.optimizer.learning_rate, "gradient-clip": recipe.optimizer.clip_norm,
        "lr-scheduler": recipe.schedule.name, "max-train-steps": STEPS, "warmup-updates": recipe.schedule.warmup_steps,
        "seed": seed, "validation-every-n-steps": VALIDATE_EVERY, "validation-metric": "ppl",
        "validation-patience": 0, "skip-generation": True,
    }  # fmt: skip
    stated = {flag: str(value) for flag, value in flags.items() if value is not None}
    return ["--no-cuda", *(part for flag, value in stated.items() for part in (f"--{flag}", value))]


def _parlais_line(line: Mapping[str, Any]) -> tuple[str, int, float | None] | None:
    return (line["kind"], line["step"], line.get("ppl")) if line["kind"] in ("train", "valid") else None


def _our_line(line: Mapping[str, Any]) -> tuple[str, int, float | None] | None:
    if line["kind"] not in ("train", "valid"):
        return None
    return line["kind"], line["step"], line["values"].get("valid/ppl")


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """The table."""
    steps = sorted({int(step) for row in rows.values() for step in row["valid_ppl"]})
    table = Table(title="The demo's student by ParlAI and by this engine")
    for header in ("", *(f"ppl at {step}" for step in steps), "ms per step", "CPU ms", "time to its third", "CPU"):
        table.add_column(header, justify="right" if header else "left")
    for name, row in rows.items():
        ppls = [row["valid_ppl"].get(str(step)) for step in steps]
        shares = (row.get("share_of_parlai"), row.get("cpu_share_of_parlai"))
        table.add_row(
            ROWS[name][0],
            *("" if ppl is None else f"{ppl:.3f}" for ppl in ppls),
            f"{1000 * row['seconds_per_step']:.0f}",
            f"{1000 * row['cpu_seconds_per_step']:.0f}",
            *("" if share is None else f"{share:.2f}" for share in shares),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
