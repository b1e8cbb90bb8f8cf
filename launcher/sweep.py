"""The table at the end of a sweep over loss weights."""

from __future__ import annotations

from pathlib import Path

from distill_engine.cluster.files import replace_text
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.problem import RecipeError
from launcher.attempts import read_attempts
from launcher.history import read_run
from launcher.requeue import ENDED_FROM_OUTSIDE, decide

_GRID = "grid.txt"  # a line for each run, left there by the job script


def write_table(folder: Path) -> str:
    """Rows best first, runs without a validation last; the text also goes to table.md in the folder.

    Raises OSError when the folder is not there or cannot be written.
    """
    rows = []
    metric = ""
    for run, line in _runs(folder):
        if not run.is_dir():
            rows.append(((0.0, 0.0), (run.name, "-", "-", "0", "not started", line)))
            continue
        metric, direction = _metric(run)
        state = read_run(run, metric, direction)
        order = (0.0, 0.0) if state.best is None else (1.0, -state.best[0] if direction == "min" else state.best[0])
        best = ("-", "-") if state.best is None else (f"{state.best[0]:.5g}", str(state.best[1]))
        rows.append((order, (run.name, *best, str(max(0, state.step)), _state(run), line)))
    rows.sort(key=lambda row: row[0], reverse=True)
    cells = [("run", f"best {metric}".strip(), "at step", "steps", "state", "settings"), *(row for _, row in rows)]
    text = _markdown([tuple(cell.replace("|", "\\|") for cell in row) for row in cells])
    replace_text(folder / "table.md", text + "\n")
    return text


def _runs(folder: Path) -> list[tuple[Path, str]]:
    """Each run with its line of the grid; those that have not begun have no folder yet."""
    lines = {}
    if (folder / _GRID).is_file():
        lines = {str(n): line for n, line in enumerate((folder / _GRID).read_text(encoding="utf-8").splitlines())}
    for file in folder.glob("*/settings.txt"):
        lines[file.parent.name] = file.read_text(encoding="utf-8").strip()
    return [(folder / name, lines[name]) for name in sorted(lines, key=lambda name: (len(name), name))]


def _state(run: Path) -> str:
    """How the run's last start ended, and whether there will be another one."""
    attempts = read_attempts(run)
    if not attempts:
        return "begun"
    last = attempts[-1]
    if last.reason == ENDED_FROM_OUTSIDE:  # cancelled, or requeued, and then it says so with its next start
        return last.reason
    decision = decide([one for one in attempts if one.job == last.job])
    return {"done": "finished", "requeue": "goes on", "stop": f"failed: code {decision.code}"}[decision.action]


def _metric(run: Path) -> tuple[str, str]:
    try:
        validation = load_recipe(run / "recipe.yaml").validation
    except RecipeError:  # not started yet
        return "ppl", "min"
    return validation.metric, validation.better


def _markdown(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
