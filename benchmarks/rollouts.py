"""Whose text a student learns on, and by which divergence: gold, the teacher's, its own, and mixes of them.

    python benchmarks/rollouts.py [--recipe FILE] [--seeds 3] [--texts NAME,...] [--divergences NAME,...]
                                  [--replies 64] [--set a.b=value] [--run-dir DIR] [--no-run]

The teacher's text is made once (`distill pseudo-label`). Same student, teacher, weights and steps in all rows. Runs are
kept in --run-dir, and one that is complete there is not repeated; all rows of one seed come before the next seed, and
what is complete can be written at any time (--no-run). Writes JSON and a table (.md) beside each other; rows that --out
has of the same recipe, changes and ranks stay beside those of this call, each with the commit that it was measured at.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from runs import complete, finished, options_over_seeds, outcome, this_machine

from distill_engine.recipe.identity import resolved_yaml
from distill_engine.recipe.load import load_recipe
from distill_engine.telemetry.jsonl import read_history
from distill_engine.telemetry.machine import machine_record

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")
OWN = ("rollout.source=student",)
TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {  # row -> data, and what it changes in the recipe
    "gold": ("gold", ()),
    "teacher": ("teacher", ()),
    "student": ("gold", (*OWN, "rollout.share=1.0")),
    "gold + teacher": ("gold + teacher", ()),
    "gold + student": ("gold", (*OWN, "rollout.share=0.5")),
    "teacher + student": ("teacher", (*OWN, "rollout.share=0.5")),
}
MEASURED = ("ppl", "teacher_agreement", "f1", "wer", "rouge_l")  # those of them that validations have
LABELS_AT_A_TIME = 256
ALMOST_NEVER = 1e-6  # a weight: gold is there to validate on


def main() -> int:
    """Make what is missing, write, and return 0; 1 if nothing is complete yet."""
    parser = options_over_seeds(__doc__, "rollouts", "whose student learns")
    parser.add_argument("--texts", type=_some(tuple(TEXTS)), default=tuple(TEXTS), help=f"some of {','.join(TEXTS)}")
    parser.add_argument(
        "--divergences", type=_some(None), default=DIVERGENCES, help=f"default: {','.join(DIVERGENCES)}"
    )
    parser.add_argument("--replies", type=int, default=64, help="of each dataset at a validation (0: texts unmeasured)")
    given = parser.parse_args()
    machine = this_machine(given.ranks, given.ds_config)
    recipes = recipes_of(given.recipe, given.overrides, given.run_dir, make=not given.no_run)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(1, given.seeds + 1):
        for divergence in given.divergences:
            for text in given.texts:
                data, own = TEXTS[text]
                name = f"{text}, {divergence}"
                folder = given.run_dir / f"{name.replace(' ', '').replace(',', '-')}-{seed}"
                overrides = overrides_of(own, divergence, seed, given.replies)
                if data in recipes and not given.no_run:
                    finished(folder, machine, overrides, recipes[data])
                if data in recipes and complete(folder, overrides, recipes[data]):
                    found.setdefault(name, []).append(outcome(folder) | last_values(folder))
    if not found:
        return 1
    facts = {"recipe": given.recipe.name, "overrides": given.overrides, "ranks": machine.ranks}
    record = machine_record()
    commits = dict.fromkeys(found, (record["git"] or {}).get("commit"))
    before, commits_before = rows_before(given.out, facts)
    facts |= {"commits": {**commits_before, **commits}, "machine": record}
    write(given.out, summarise({**before, **found}) | facts)
    return 0


def rows_before(file: Path, facts: Mapping[str, Any]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str | None]]:
    """Row -> runs, and row -> commit, of an earlier call with the same facts; nothing where there is none."""
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if any(earlier.get(name) != value for name, value in facts.items()):
        return {}, {}
    return earlier["runs"], earlier["commits"]


def _some(known: tuple[str, ...] | None) -> Any:
    def names(given: str) -> tuple[str, ...]:
        found = tuple(part.strip() for part in given.split(","))
        if known is not None and (unknown := sorted(set(found) - set(known))):
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are: {', '.join(known)}")
        return found

    return names


def overrides_of(own: Sequence[str], divergence: str, seed: int, replies: int) -> list[str]:
    """What a run changes in its recipe; `replies` of each dataset are generated at a validation."""
    generated = f"validation.generate_examples={replies}"
    return [*own, f"losses.divergence={divergence}", generated, "validation.samples=0", f"seed={seed}"]


def recipes_of(recipe: Path, overrides: Sequence[str], folder: Path, *, make: bool) -> dict[str, Path]:
    """Data -> a recipe in `folder` with it; those with the teacher's text once that is there, or made now."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = load_recipe(recipe, overrides)
    files = {"gold": folder / "gold.yaml"}
    files["gold"].write_text(resolved_yaml(plain), encoding="utf-8")
    entries = folder / "labels" / "entries.yaml"
    if make and not entries.is_file():
        entries.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "distill_engine.cli", "pseudo-label", str(files["gold"])]
        command += ["--out", str(entries.parent), "--batch-size", str(LABELS_AT_A_TIME)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        entries.write_text(done.stdout, encoding="utf-8")
    if entries.is_file():
        labelled = yaml.safe_load(entries.read_text(encoding="utf-8"))
        for name, share in {"teacher": ALMOST_NEVER, "gold + teacher": 1.0}.items():
            content = yaml.safe_load(resolved_yaml(plain))
            content["data"]["datasets"] = [*with_share(content["data"]["datasets"], share), *labelled]
            files[name] = folder / f"{name.replace(' ', '')}.yaml"
            files[name].write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return files


def with_share(sources: Sequence[Mapping[str, Any]], share: float) -> list[dict[str, Any]]:
    """The sources, coming so much less often."""
    return [{**source, "weight": source["weight"] * share} for source in sources]


def last_values(folder: Path) -> dict[str, float]:
    """What the last validation measured; with samples, their length and the share of a step that they took."""
    records = read_history(folder / "metrics.jsonl")
    valid = [record.values for record in records if record.kind == "valid"][-1]
    train = [record.values for record in records if record.kind == "train"][-1]
    found = {f"last_{name}": valid[f"valid/{name}"] for name in MEASURED if f"valid/{name}" in valid}
    names = {"sample_tokens": "train/rollout/sample_tokens", "sampling_share": "time/share/rollout"}
    return found | {name: train[logged] for name, logged in names.items() if "train/rollout/sample_tokens" in train}


def summarise(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Of each row: seeds, mean and spread (largest minus smallest) of what was measured, and seconds per step."""
    measured = {key for runs in rows.values() for run in runs for key in run if key.startswith("last_")}
    result: dict[str, Any] = {"seeds": {name: len(runs) for name, runs in rows.items()}}
    for key in ("valid_ppl", *sorted(measured)):
        values = {name: [run[key] for run in runs if key in run] for name, runs in rows.items()}
        result[f"{key}_mean"] = {name: statistics.mean(of) for name, of in values.items() if of}
        result[f"{key}_spread"] = {name: max(of) - min(of) for name, of in values.items() if of}
    costs = {name: [run["seconds_per_step"] for run in runs if run["seconds_per_step"]] for name, runs in rows.items()}
    result["seconds_per_step"] = {name: min(of) for name, of in costs.items() if of}
    return result | {"runs": {name: list(runs) for name, runs in rows.items()}}


def write(file: Path, result: Mapping[str, Any]) -> None:
    """JSON and Markdown."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    sys.stdout.write(markdown(result))


def markdown(result: Mapping[str, Any]) -> str:
    """The table, and what it was measured on."""
    shown = {"valid_ppl": "best valid ppl"} | {
        f"last_{name}": name.replace("_", " ") for name in MEASURED[1:] if f"last_{name}_mean" in result
    }
    head = [*shown.values(), "seeds", "s per step"]
    lines = [f"| text | divergence | {' | '.join(head)} |", f"|---|---|{'---:|' * len(head)}"]
    for name, seeds in result["seeds"].items():
        cells = [_cell(result, key, name) for key in shown]
        seconds = f"{result['seconds_per_step'][name]:.3f}" if name in result["seconds_per_step"] else "-"
        text, divergence = name.split(", ")
        lines.append(f"| {text} | {divergence} | {' | '.join(cells)} | {seeds} | {seconds} |")
    machine = result["machine"]
    changed = f" with {', '.join(f'`{one}`' for one in result['overrides'])}" if result["overrides"] else ""
    device = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['cpu_cores']} cores"
    said = "Means over the seeds, and largest minus smallest; all but the first column of the last validation."
    return "\n".join([*lines, "", f"{said} {result['recipe']}{changed}, {result['ranks']} rank(s); {device}."]) + "\n"


def _cell(result: Mapping[str, Any], key: str, name: str) -> str:
    if name not in result[f"{key}_mean"]:
        return "-"
    return f"{result[f'{key}_mean'][name]:.4f} ± {result[f'{key}_spread'][name]:.4f}"


if __name__ == "__main__":
    sys.exit(main())
