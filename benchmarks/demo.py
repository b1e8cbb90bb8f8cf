"""`make demo`: distils a small Blenderbot on this machine and shows what that was worth.

Three runs of the demo recipe with equal students, data and steps: one with the teacher, one that only starts from the
teacher's layers, and one with nothing of it. Then one table of teacher and students, and the reports. Everything is in
runs/demo; summary.json holds the table.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from runs import DEMO_RECIPE, ROOT, RunFailedError, start_run, this_machine

from distill_engine.telemetry.quiet import quiet_libraries

CONSOLE = Console()
DEMO_TEACHER = ROOT / "recipes" / "demo" / "teacher"
COLUMNS = ("parameters", "valid_ppl", "token_accuracy", "teacher_agreement", "ms_per_reply")
_TERMS = ("encoder", "embedding", "hidden", "self_attention", "cross_attention", "prediction")
TASK_ALONE = tuple(f"losses.weights.{term}=0" for term in _TERMS)
# Both at the best learning rate for them, so that the teacher is not praised for a badly tuned rival.
BASELINES = {
    # The honest one (Shleifer and Rush 2020): the same copied layers, trained on without the teacher's losses.
    # Valid ppl with seed 1: 1.464 at 0.0015; at 0.001 and 0.002 1.467, at 0.003 1.470, at the recipe's 0.005 1.489.
    "shrink_and_finetune": (*TASK_ALONE, "optimizer.learning_rate=0.0015"),
    # Nothing of the teacher, neither its losses nor its weights. From scratch a student prefers a higher learning rate
    # than copied layers do (0.008 over 0.004; others were not tried to the end).
    "without_teacher": (
        *TASK_ALONE,
        "teacher.path=null",
        "student.init=random",
        "data.tokenizer=recipes/demo/tokenizer",
        "optimizer.learning_rate=0.008",
    ),
}


def main() -> int:
    """Run, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "demo", help="where everything goes")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value",
                        help="change one value of the recipe in both runs")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="times that the report card measures each latency (5)")
    given = parser.parse_args()
    quiet_libraries(0)
    started = time.perf_counter()
    try:
        rows = distil_and_compare(given.run_dir, given.overrides)
    except RunFailedError as error:
        CONSOLE.print(str(error), style="red", markup=False)
        return 1
    summary = given.run_dir / "summary.json"
    summary.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    say("4 of 4: report card", quiet=False)
    write_reports(given.run_dir, given.overrides, given.rounds)
    show(rows, given.run_dir, time.perf_counter() - started)
    return 0


def distil_and_compare(run_dir: Path, overrides: list[str], quiet: bool = False) -> dict[str, dict[str, float]]:
    """All runs into fresh folders (the baselines' inside the first's), then one row per model."""
    machine = this_machine()
    shutil.rmtree(run_dir, ignore_errors=True)
    say(f"1 of 4: distilling on {machine.ranks} ranks (teacher ZeRO-3, student ZeRO-2)", quiet)
    start_run(run_dir, machine, overrides, quiet)
    for name, own in BASELINES.items():
        say(f"2 of 4: the same student, the same steps: {_spoken(name)}", quiet)
        start_run(run_dir / name, machine, [*own, f"name=demo-{name.replace('_', '-')}", *overrides], quiet)
    say("3 of 4: measuring", quiet)
    return measure(run_dir, overrides)


def measure(run_dir: Path, overrides: list[str]) -> dict[str, dict[str, float]]:
    """Rows teacher, distilled and the baselines with the columns of COLUMNS."""
    import torch

    from distill_engine.evaluate.compare import compare_loaded
    from distill_engine.evaluate.measure import load_model
    from distill_engine.recipe.rules import read_recipe
    from distill_engine.setup.prepare import prepare

    ready = prepare(read_recipe(DEMO_RECIPE, overrides), DEMO_RECIPE)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = load_model(str(ready.teacher_folder), device)
    models = {
        "teacher": teacher,
        "distilled": load_model(run_dir / "best", device),
        **{name: load_model(run_dir / name / "best", device) for name in BASELINES},
    }
    rows = compare_loaded(models, teacher, ready, device, with_latency=True)
    # the table's words for values that `distill evaluate` calls as ParlAI does
    of_row = {"valid_ppl": "ppl", "token_accuracy": "token_acc", "teacher_agreement": "teacher_acc"}
    return {name: {column: row[of_row.get(column, column)] for column in COLUMNS} for name, row in rows.items()}


def write_reports(run_dir: Path, overrides: list[str], rounds: int) -> None:
    """The run's page and the report card, by the commands that a user has; a failure is said and costs nothing else."""
    card = [
        "report-card", DEMO_TEACHER, run_dir, *(run_dir / name for name in BASELINES),
        "--recipe", DEMO_RECIPE, "--out", run_dir / "report_card",
        "--into", run_dir / "best", "--beams", "1,4", "--batches", "1,8", "--rounds", str(rounds), "--fresh",
        "--partial", run_dir / ".evaluations", "--set", "data.datasets.0.valid_examples=100",
        "--backends", ",".join(installed_backends()),
        *(word for override in overrides for word in ("--set", override)),
    ]  # fmt: skip
    for words in (["report", run_dir], card):
        command = [sys.executable, "-m", "distill_engine.cli", *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            CONSOLE.print(f"distill {words[0]} failed: {done.stderr.strip()[-500:]}", style="red", markup=False)


def installed_backends() -> list[str]:
    """The programs of `distill latency` whose libraries are here, in full precision and in int8."""
    found = ["torch", "torch-int8"]
    for name, libraries in {"onnx": ("onnx", "onnxruntime"), "ctranslate2": ("ctranslate2",)}.items():
        if all(find_spec(library) for library in libraries):
            found += [name, f"{name}-int8"]
    return found


def show(rows: dict[str, dict[str, float]], run_dir: Path, seconds: float) -> None:
    """The table and where things are."""
    table = Table(title="Demo: was the teacher worth it?")
    table.add_column("", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.replace("_", " "), justify="right", min_width=max(map(len, column.split("_"))))
    for name, row in rows.items():
        table.add_row(
            _spoken(name),
            f"{row['parameters']:,.0f}",
            f"{row['valid_ppl']:.3f}",
            f"{row['token_accuracy']:.1%}",
            f"{row['teacher_agreement']:.1%}",
            f"{row['ms_per_reply']:.1f}",
        )
    CONSOLE.print(table)
    CONSOLE.print(f"{brought(rows)}.")
    CONSOLE.print(f"took {seconds:.0f} s without the installation; everything is in {_shown(run_dir)}:")
    for name, meaning in (
        ("best/", "the distilled student; transformers loads it as it is"),
        ("metrics.jsonl", "every loss term and metric over the steps"),
        ("wandb/", "the same for W&B, offline: `wandb sync` uploads it"),
        ("checkpoints/", "what the same command resumes from"),
        ("recipe.yaml", "the recipe with every default written out"),
        ("shrink_and_finetune/", "the run that starts from the teacher's layers and never asks it again"),
        ("without_teacher/", "the run with nothing of the teacher"),
        ("summary.json", "this table"),
        ("report.html", "every metric of the run as a plot"),
        ("report_card/", "speed against quality, with replies side by side"),
    ):
        CONSOLE.print(f"  {name:21} {meaning}")


def brought(rows: dict[str, dict[str, Any]]) -> str:
    """What copied layers and what the teacher's losses are worth, in one sentence."""
    copied = gap_closed(rows, "without_teacher", "shrink_and_finetune")
    return (
        f"of the gap in log perplexity between the student alone and the teacher, the copied layers close {copied:.0%} "
        f"and distillation {gap_closed(rows) - copied:.0%}: {gap_closed(rows, 'shrink_and_finetune'):.0%} of what "
        "shrink and fine-tune leaves"
    )


def gap_closed(rows: dict[str, dict[str, Any]], baseline: str = "without_teacher", student: str = "distilled") -> float:
    """Share of the log-perplexity gap between a baseline and the teacher that a student closes."""
    start, reached, teacher = (math.log(rows[name]["valid_ppl"]) for name in (baseline, student, "teacher"))
    return (start - reached) / (start - teacher) if start != teacher else 0.0


def say(text: str, quiet: bool) -> None:
    """One line between the steps."""
    if not quiet:
        CONSOLE.print(f"[bold]{text}[/bold]")


def _spoken(name: str) -> str:
    return name.replace("_and_finetune", " and fine-tune").replace("_", " ")


def _shown(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


if __name__ == "__main__":
    sys.exit(main())
