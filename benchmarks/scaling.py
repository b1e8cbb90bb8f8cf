"""How training scales: measured at 1 and 2 ranks on this machine, and from 1 to 512 GPUs by the model of `plan`.

    python benchmarks/scaling.py [--preset demo] [--rounds 5] [--steps 4] [--results benchmarks/results]

Writes scaling.json, scaling.md and scaling.svg and prints the JSON. benchmarks/README.md explains the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from scaling_ranks import measure  # noqa: E402
from step_presets import PRESETS, Preset  # noqa: E402

from distill_engine.recipe.load import load_recipe  # noqa: E402
from launcher.hardware import GPUS  # noqa: E402
from launcher.job import Job  # noqa: E402
from launcher.job_files import read_job  # noqa: E402
from launcher.plan import Plan, assumptions, make_plan  # noqa: E402
from launcher.traffic import traffic  # noqa: E402

RECIPE = ROOT / "recipes" / "bb3b_tinybert.yaml"
CONFIGS = ROOT / "ds_configs" / "zero2.json", ROOT / "ds_configs" / "teacher_zero3.json"
GPU, PER_NODE = "h100", 8
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PLACEMENTS = ("zero3", "node", "replica", "offload")


# ---- measured here ---------------------------------------------------------------------------------------------------


def measured(preset_name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Steps, efficiencies, and what the plan's bytes predict with this machine's own ceilings."""
    from distill_engine.telemetry.machine import machine_record

    before = os.getloadavg()
    found = measure(preset_name, rounds, steps)
    preset = PRESETS[preset_name]
    one, weak, strong = (found[f"seconds_{name}"]["median"] for name in ("one", "weak", "strong"))
    predicted = predicted_seconds(preset, found)
    tokens = preset.batch * (preset.context_tokens + preset.label_tokens)
    return {
        "preset": preset_name,
        "samples": found,
        "tokens_per_second": {"one": tokens / one, "weak": 2 * tokens / weak, "strong": tokens / strong},
        "efficiency": {"weak": one / weak, "strong": one / strong / 2},
        "predicted_efficiency": {"weak": one / predicted["weak"], "strong": one / predicted["strong"] / 2},
        "load_average": {"before": before, "after": os.getloadavg()},
        "machine": machine_record(),
    }


def predicted_seconds(preset: Preset, found: dict[str, Any]) -> dict[str, float]:
    """A step of 2 ranks: the measured step of one rank, slower by what two ranks at once lose in matrix products, and
    the plan's bytes and collectives at the measured rate and latency. On a CPU nothing runs beside the arithmetic.
    Strong: half the examples are taken to be half the work, the optimizer's and every launch's included."""
    slower = found["gflops_one"]["median"] / found["gflops_two"]["median"]
    alone = found["seconds_one"]["median"] * slower
    moved = traffic(job_of(preset)).values()
    links = sum(one.within for one in moved) / found["bandwidth"]["median"]
    links += sum(one.collectives for one in moved) * found["latency"]["median"]
    return {"weak": alone + links, "strong": alone / 2 + links}


def job_of(preset: Preset) -> Job:
    """The benchmark's run on two ranks, for the plan."""
    from step import recipe_of

    configs = [json.loads((ROOT / "ds_configs" / name).read_text()) for name in ("zero2_fp32.json", CONFIGS[1].name)]
    models = preset.shape(preset.student), preset.shape(preset.teacher)
    return Job(recipe_of("scaling", preset), *models, *configs, 2, 2, preset.batch, 1, triton=False)


# ---- modelled --------------------------------------------------------------------------------------------------------


def modelled() -> list[dict[str, Any]]:
    """A row for every placement and number of GPUs: weak scaling, the recipe's examples on every GPU.

    Efficiency is against one GPU with the same placement; host memory's against ZeRO-3, which it is.
    """
    alone = {one: plan_of("zero3" if one == "offload" else one, 1).tokens_per_second for one in PLACEMENTS}
    plans = [(placement, count, plan_of(placement, count)) for placement in PLACEMENTS for count in COUNTS]
    return [_row(one, count, made, made.tokens_per_second / count / alone[one]) for one, count, made in plans]


def plan_of(placement: str, count: int) -> Plan:
    """The plan of the BlenderBot-3B recipe on so many GPUs."""
    nodes, per_node = (1, count) if count < PER_NODE else (count // PER_NODE, PER_NODE)
    overrides = [f"teacher.placement={placement}"]
    return make_plan(read_job(RECIPE, overrides, nodes, per_node, *CONFIGS, GPUS[GPU]), GPUS[GPU])


def _row(placement: str, count: int, made: Plan, efficiency: float) -> dict[str, Any]:
    return {
        "gpus": count,
        "placement": placement,
        "seconds_per_step": made.seconds,
        "tokens_per_second": made.tokens_per_second,
        "efficiency": efficiency,
        "bytes_between_nodes": {who: one.between for who, one in made.traffic.items()},
        "memory_bytes": made.needed,
        "fits": made.fits,
        "waiting_seconds": {who: value for who, value in made.times.items() if who.startswith(("waiting", "sending"))},
    }


# ---- written down ----------------------------------------------------------------------------------------------------


def page(result: dict[str, Any]) -> str:
    """The Markdown page."""
    here, rows = result["measured"], result["modelled"]
    return "\n".join(
        [
            "# Scaling",
            "",
            "Written by `python benchmarks/scaling.py`; numbers in [scaling.json](scaling.json).",
            "",
            *_measured_lines(here),
            "",
            f"## Modelled: {result['recipe']} on {GPU}, {PER_NODE} GPUs a node",
            "",
            "Nothing here is measured. `python -m launcher plan` makes the same estimates; examples per GPU stay as "
            "in the recipe (weak scaling). Efficiency: tokens per second and GPU, against one GPU with the "
            "same placement (offload: against zero3).",
            "",
            "![efficiency and bytes between nodes](scaling.svg)",
            "",
            "Assumed: " + "; ".join(f"{what}: {how}" for what, how in result["assumptions"].items()) + ".",
            "",
            *_modelled_lines(rows),
            "",
        ]
    )


def _measured_lines(here: dict[str, Any]) -> list[str]:
    samples, machine = here["samples"], here["machine"]
    load = ", ".join(f"{when} {values[0]:.1f}" for when, values in here["load_average"].items())
    lines = [
        f"## Measured: preset `{here['preset']}`, 1 and 2 ranks of one thread",
        "",
        f"{machine['cpu']}, {machine['cpu_cores']} cores, load average {load} (these jobs themselves make up to 2); "
        f"torch {machine['versions'].get('torch')}, deepspeed {machine['versions'].get('deepspeed')}, commit "
        f"{machine.get('git', {}).get('commit', 'unknown')[:12]}. Medians of {samples['rounds']} rounds in turns.",
        "",
        "| | seconds per step | p20 - p80 | tokens/s | efficiency | predicted |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    names = {"one": "1 rank", "weak": "2 ranks, as many examples each", "strong": "2 ranks, half the examples each"}
    for name, text in names.items():
        one = samples[f"seconds_{name}"]
        spread = f"{one['p20']:.3f} - {one['p80']:.3f}"
        both = [here[kind].get(name, 1.0) for kind in ("efficiency", "predicted_efficiency")]
        tokens = f"{here['tokens_per_second'][name]:,.0f}"
        lines.append(f"| {text} | {one['median']:.3f} | {spread} | {tokens} | {both[0]:.0%} | {both[1]:.0%} |")
    ceilings = (
        f"{samples['gflops_one']['median']:.1f} Gflop/s alone, {samples['gflops_two']['median']:.1f} each of two",
        f"all-reduce {samples['bandwidth']['median'] / 1e9:.2f} GB/s, {samples['latency']['median'] * 1e6:.0f} us",
    )
    return [
        *lines,
        "",
        f"Predicted: one rank's step, slowed by the machine's own ceilings ({'; '.join(ceilings)}) and the bytes and "
        "collectives that the plan counts. What it leaves out is the work that every rank repeats.",
    ]


def _modelled_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| GPUs | teacher.placement | ms per step | tokens/s | efficiency | GB into a node per step: teacher | "
        "gradients and weights | GB on a GPU |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda one: (one["gpus"], PLACEMENTS.index(one["placement"]))):
        between = row["bytes_between_nodes"]
        teacher = between["teacher gathering"]
        rest = sum(between.values()) - teacher
        memory = f"{row['memory_bytes'] / 1e9:.1f}" + ("" if row["fits"] else " (does not fit)")
        lines.append(
            f"| {row['gpus']} | {row['placement']} | {row['seconds_per_step'] * 1e3:.1f} | "
            f"{row['tokens_per_second']:,.0f} | {row['efficiency']:.0%} | {teacher / 1e9:.2f} | {rest / 1e9:.2f} | "
            f"{memory} |"
        )
    return lines


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Efficiency and bytes between nodes against the number of GPUs, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "scaling"  # the same numbers give the same file
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    styles = {"zero3": "o-", "node": "s-", "replica": "^--", "offload": "x:"}
    for placement, style in styles.items():
        mine = [row for row in rows if row["placement"] == placement]
        counts = [row["gpus"] for row in mine]
        left.plot(counts, [100 * row["efficiency"] for row in mine], style, label=placement)
        teacher = [row["bytes_between_nodes"]["teacher gathering"] / 1e9 for row in mine]
        right.plot(counts, teacher, style, label=f"teacher, {placement}")
    others = [sum(v for k, v in row["bytes_between_nodes"].items() if k != "teacher gathering") / 1e9 for row in mine]
    right.plot(counts, others, color="grey", label="gradients and weights")
    left.set(title="efficiency (modelled)", xlabel=f"{GPU} GPUs, {PER_NODE} a node", ylabel="%", ylim=(0, 105))
    right.set(title="bytes into a node per step", xlabel=f"{GPU} GPUs, {PER_NODE} a node", ylabel="GB")
    for one in (left, right):
        one.set_xscale("log", base=2)
        one.set_xticks(COUNTS, [str(count) for count in COUNTS])
        one.grid(alpha=0.3)
        one.legend(fontsize="small")
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> int:
    """Measure, model, write."""
    parser = argparse.ArgumentParser(description="Scaling: measured at 1 and 2 ranks, modelled to 512 GPUs.")
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--rounds", type=int, default=5, help="turns of the measured jobs")
    parser.add_argument("--steps", type=int, default=4, help="steps of a job in a turn")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    asked = parser.parse_args()
    result = {
        "measured": measured(asked.preset, asked.rounds, asked.steps),
        "recipe": load_recipe(RECIPE).name,
        "gpu": GPU,
        "gpus_per_node": PER_NODE,
        "assumptions": assumptions(GPUS[GPU]),
        "modelled": modelled(),
    }
    asked.results.mkdir(parents=True, exist_ok=True)
    (asked.results / "scaling.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (asked.results / "scaling.md").write_text(page(result), encoding="utf-8")
    draw(result["modelled"], asked.results / "scaling.svg")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
