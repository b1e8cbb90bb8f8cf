"""What each part of distillation is worth: one recipe from nothing of the teacher to everything, a part at a time.

    python benchmarks/ablation.py [--recipe FILE] [--seeds 3] [--rows NAME,...] [--set a.b=value] [--run-dir DIR]

Each row has all that the rows above it have, and one thing more; `balance` then replaces the recipe's weights by ones
that `losses.balance: gradient_alignment` balances. Same student, data and steps. Runs are kept in --run-dir, and one
that is complete there is not repeated; all rows of one seed come before the next seed, and what is complete can be
written at any time (--no-run). Writes JSON, a table (.md) and a plot (.svg) beside each other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo import BASELINES
from runs import DEMO_RECIPE, complete, finished, options_over_seeds, outcome, this_machine

from distill_engine.losses.config import LossWeights
from distill_engine.recipe.rules import read_recipe
from distill_engine.setup.prepare import prepare
from distill_engine.telemetry.machine import machine_record

PARTS = {  # row -> the terms that it adds
    "prediction": ("prediction",),
    "hidden": ("hidden", "encoder"),
    "attention": ("self_attention", "cross_attention"),
    "embedding": ("embedding",),
}
ROWS = ("nothing", "initialisation", *PARTS, "balance")
_DISTILLED = tuple(term for terms in PARTS.values() for term in terms)


def main() -> int:
    """Make what is missing, write, and return 0; 1 if nothing is complete yet."""
    parser = options_over_seeds(__doc__, "ablation", "whose student is taken apart")
    parser.add_argument("--rows", type=_rows, default=ROWS, help=f"some of {','.join(ROWS)} to make; default: all")
    given = parser.parse_args()
    machine = this_machine(given.ranks, given.ds_config)
    arms = arms_of(given.recipe)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for seed in range(1, given.seeds + 1):
        for name, own in arms.items():
            folder, overrides = given.run_dir / f"{name}-{seed}", [*own, *given.overrides, f"seed={seed}"]
            if name in given.rows and not given.no_run:
                found[name].append(finished(folder, machine, overrides, given.recipe))
            elif complete(folder, overrides, given.recipe):
                found[name].append(outcome(folder))
    rows = {name: runs for name, runs in found.items() if runs}
    if not rows:
        return 1
    facts = {"recipe": given.recipe.name, "overrides": given.overrides, "ranks": machine.ranks}
    write(given.out, summarise(rows) | facts | {"machine": machine_record()})
    return 0


def _rows(given: str) -> tuple[str, ...]:
    names = tuple(given.split(","))
    if unknown := sorted(set(names) - set(ROWS)):
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are: {', '.join(ROWS)}")
    return names


def arms_of(recipe: Path) -> dict[str, tuple[str, ...]]:
    """Row -> what it changes in the recipe. The demo's first two have the learning rates that suit them best; those
    of another recipe have its own."""
    weights = read_recipe(recipe, []).losses.weights.model_dump()
    none = tuple(f"losses.weights.{term}=0" for term in _DISTILLED)
    demo = recipe.resolve() == DEMO_RECIPE
    arms = {
        "nothing": BASELINES["without_teacher"] if demo else (*none, *_alone(recipe)),
        "initialisation": BASELINES["shrink_and_finetune"] if demo else none,
    }
    left = set(_DISTILLED)
    for name, terms in PARTS.items():
        left -= set(terms)
        if any(weights[term] for term in terms):  # a part that the recipe leaves out has no row
            arms[name] = tuple(f"losses.weights.{term}=0" for term in _DISTILLED if term in left)
    ones = tuple(f"losses.weights.{name}=1" for name in LossWeights.fields() if weights[name])
    return arms | {"balance": (*ones, "losses.balance=gradient_alignment")}


def _alone(recipe: Path) -> tuple[str, ...]:
    """The recipe's student without its teacher: sizes that it takes over are written out."""
    ready = prepare(read_recipe(recipe, []), recipe)
    config, student = ready.teacher_config or {}, ready.recipe.student
    taken = {
        "family": config.get("model_type"), "width": config.get("d_model"),
        "heads": config.get("encoder_attention_heads"), "ffn_width": config.get("encoder_ffn_dim"),
        "positions": config.get("max_position_embeddings"),
        "encoder_layers": config.get("encoder_layers"), "decoder_layers": config.get("decoder_layers"),
        "dropout": config.get("dropout"), "attention_dropout": config.get("attention_dropout"),
    }  # fmt: skip
    sizes = tuple(f"student.{name}={value}" for name, value in taken.items() if getattr(student, name) is None)
    tokenizer = ready.recipe.data.tokenizer or str(ready.teacher_folder)
    return "teacher.path=null", "student.init=random", f"data.tokenizer={tokenizer}", *sizes


def summarise(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Seeds, mean perplexity, its spread (largest minus smallest) and seconds per step of each row."""
    ppl = {name: [run["valid_ppl"] for run in runs] for name, runs in rows.items()}
    costs = {name: [run["seconds_per_step"] for run in runs if run["seconds_per_step"]] for name, runs in rows.items()}
    return {
        "seeds": min(map(len, ppl.values())),
        "seeds_of_each": {name: len(values) for name, values in ppl.items()},
        "valid_ppl_mean": {name: statistics.mean(values) for name, values in ppl.items()},
        "valid_ppl_spread": {name: max(values) - min(values) for name, values in ppl.items()},
        "seconds_per_step": {name: min(values) for name, values in costs.items() if values},
        "runs": {name: list(runs) for name, runs in rows.items()},
    }


def write(file: Path, result: Mapping[str, Any]) -> None:
    """JSON, Markdown and the plot."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    file.with_suffix(".svg").write_text(plot(result), encoding="utf-8")
    sys.stdout.write(markdown(result))


def markdown(result: Mapping[str, Any]) -> str:
    """The table, and what it was measured on."""
    mean, spread, cost = (result[key] for key in ("valid_ppl_mean", "valid_ppl_spread", "seconds_per_step"))
    lines = ["| from nothing to all | valid ppl, mean | spread | seeds | s per step |", "|---|---:|---:|---:|---:|"]
    for name, shown in labels(mean).items():
        seconds = f"{cost[name]:.3f}" if name in cost else "-"
        lines.append(
            f"| {shown} | {mean[name]:.4f} | {spread[name]:.4f} | {result['seeds_of_each'][name]} | {seconds} |"
        )
    machine = result["machine"]
    changed = f" with {', '.join(f'`{one}`' for one in result['overrides'])}" if result["overrides"] else ""
    device = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['cpu_cores']} cores"
    return "\n".join([*lines, "", f"{result['recipe']}{changed}, {result['ranks']} rank(s); {device}."]) + "\n"


def labels(names: Iterable[str]) -> dict[str, str]:
    """What each row adds to the one above it, in words; a row also names those before it that were not made."""
    found, passed = {}, []
    present = set(names)
    for name in ROWS:
        passed.append(name)
        if name in present:
            found[name] = ", ".join(passed) if not found else f"+ {', '.join(passed)}"
            passed = []
    return found


def plot(result: Mapping[str, Any]) -> str:
    """Perplexity of each row with its seeds as points, as SVG; the bar of a row is its mean."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.45 * len(result["runs"]) + 1.1), layout="constrained")
    axes = figure.subplots()
    names = list(result["runs"])
    lowest = min(run["valid_ppl"] for runs in result["runs"].values() for run in runs)
    for place, name in enumerate(names):
        axes.barh(place, result["valid_ppl_mean"][name] - lowest + 0.002, left=lowest - 0.002, color="#9db8da")
        found = [run["valid_ppl"] for run in result["runs"][name]]
        axes.plot(found, [place] * len(found), "o", color="#3b6fb6", markersize=4)
    axes.set_yticks(range(len(names)), list(labels(names).values()))
    axes.invert_yaxis()
    axes.set_xlabel("valid ppl (bars: mean over seeds, points: seeds)")
    axes.spines[["top", "right"]].set_visible(False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    return text[text.index("<svg") :]


if __name__ == "__main__":
    sys.exit(main())
