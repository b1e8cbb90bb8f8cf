"""A training step of ParlAI's distillation and of this one: the same models, batch, losses and optimizer, by turns.

    python benchmarks/parlai_step.py --parlai-python PYTHON [--rows parlai ours_fp32 ours_bf16] [--preset parlai_cpu]

PYTHON is an interpreter that can import ParlAI (docs/parlai.md says how to make one): its DistillNarrowTransformerAgent
takes steps on a full batch of random words, and so does the trainer that the product builds (step.py). Each is a
process of its own; they take turns of a few steps. The last line of standard output is one JSON object, the same goes
to benchmarks/results/parlai_step.json; benchmarks/README.md explains its fields.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from step_presets import PRESETS, WEIGHTS, Preset, Size, arithmetic_gflop  # noqa: E402
from step_server import CLOCKS, Server, ServerError, by_turns, serve, times_as_fast  # noqa: E402

from distill_engine.telemetry.machine import machine_record  # noqa: E402

SIDE = Path(__file__).resolve().with_name("parlai_side.py")
RESULT = ROOT / "benchmarks" / "results" / "parlai_step.json"
ROWS = {"parlai": "ParlAI, fp32", "ours_fp32": "ours, fp32", "ours_bf16": "ours, bf16"}
_WEIGHTS = {"task": "task-loss-coeff", "encoder": "encoder-loss-coeff", "embedding": "embedding-loss-coeff",
            "hidden": "hidden-loss-coeff", "self_attention": "self-attn-loss-coeff",
            "cross_attention": "enc-dec-attn-loss-coeff", "prediction": "pred-loss-coeff"}  # fmt: skip


def main() -> int:
    """Measure, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parlai-python", type=Path, help="an interpreter that can import ParlAI; row parlai needs it")
    parser.add_argument("--rows", nargs="*", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("--preset", choices=PRESETS, default="parlai_cpu")
    parser.add_argument("--threads", type=int, help="of each process (the preset's)")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each (8)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn (3)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result as JSON")
    parser.add_argument("--serve", choices=tuple(ROWS), help=argparse.SUPPRESS)  # a row's own process
    given = parser.parse_args()
    preset = PRESETS[given.preset]
    threads = given.threads or preset.threads or len(os.sched_getaffinity(0))
    if given.serve is not None:
        serve_ours(given.preset, given.serve.removeprefix("ours_"), threads)
        return 0
    if "parlai" in given.rows and given.parlai_python is None:
        parser.error("row parlai needs --parlai-python, an interpreter that can import ParlAI; or leave the row out")
    try:
        result = measured(given, preset, threads)
    except ServerError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        return 1
    show(result["rows"])
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def measured(given: argparse.Namespace, preset: Preset, threads: int) -> dict[str, Any]:
    """All rows by turns. Raises ServerError."""
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    servers: dict[str, Server] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            abouts = {}
            for row in given.rows:  # one after the other: each has the machine for its start
                command = command_of(row, given, preset, threads, folder)
                servers[row] = Server(row, command, environment, folder / f"{row}.txt")
                abouts[row] = servers[row].about()
            by_turns(list(servers.values()), given.rounds, given.steps)
        finally:
            for server in servers.values():
                server.close()
    return {
        "preset": given.preset,
        "threads": threads,
        "rounds": given.rounds,
        "steps_of_a_round": given.steps,
        "arithmetic_gflop": arithmetic_gflop(preset),
        "rows": {row: row_of(server, abouts[row], servers.get("parlai")) for row, server in servers.items()},
        "machine": machine_record(),
    }


def row_of(server: Server, about: dict[str, Any], theirs: Server | None) -> dict[str, Any]:
    """Medians, ratios to ParlAI where it ran, and what the server said of itself."""
    row: dict[str, Any] = {f"{clock}_per_step": server.median(clock) for clock in CLOCKS}
    if theirs is not None and server is not theirs:
        row["times_as_fast"] = times_as_fast(theirs, server, "seconds")
        row["cpu_times_as_fast"] = times_as_fast(theirs, server, "cpu_seconds")
    return row | about


def command_of(row: str, given: argparse.Namespace, preset: Preset, threads: int, folder: Path) -> Sequence[str | Path]:
    """What starts the server of a row; ParlAI's finds its dictionary in the folder."""
    if row != "parlai":
        return [sys.executable, __file__, "--serve", row, "--preset", given.preset, "--threads", str(threads)]
    words = [f"w{number}" for number in range(preset.vocabulary - 4)]
    (folder / "dict").write_text("".join(f"{word}\t1\n" for word in (*_SPECIAL, *words)), encoding="utf-8")
    asked = {
        "threads": threads, "warm_up": preset.warm_up, "batch": preset.batch, "context_tokens": preset.context_tokens,
        "label_tokens": preset.label_tokens, "words": words, "teacher_file": str(folder / "teacher"),
        "teacher": [*_model_flags(preset, preset.teacher, folder), "--model", "transformer/generator"],
        "student": student_flags(preset, folder),
    }  # fmt: skip
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    return [given.parlai_python, SIDE, "steps", folder / "asked.json"]


_SPECIAL = ("__null__", "__start__", "__end__", "__unk__")


def student_flags(preset: Preset, folder: Path) -> list[str]:
    """The preset as ParlAI's agent for narrower students reads it; step.py's recipe says the same."""
    flags: dict[str, Any] = {
        "model": "projects.anti_scaling.distillation:DistillNarrowTransformerAgent",
        "teacher-model": folder / "teacher",
        **{flag: WEIGHTS.get(term, 0) for term, flag in _WEIGHTS.items()},
        "optimizer": "adam", "learningrate": 1e-4, "gradient-clip": 0.1,
    }  # fmt: skip
    return [*_model_flags(preset, preset.student, folder), *_words(flags)]


def _model_flags(preset: Preset, size: Size, folder: Path) -> list[str]:
    longest = max(preset.context_tokens, preset.label_tokens)
    return ["--no-cuda", *_words({
        "task": "integration_tests", "datapath": folder / "data",
        "dict-file": folder / "dict", "dict-tokenizer": "space", "dict-lower": False,
        "embedding-size": size.width, "ffn-size": size.ffn_width, "n-heads": preset.heads,
        "n-encoder-layers": size.encoder_layers, "n-decoder-layers": size.decoder_layers,
        "n-positions": longest, "variant": "prelayernorm", "activation": "gelu", "embeddings-scale": True,
        "learn-positional-embeddings": False, "dropout": 0, "attention-dropout": 0, "relu-dropout": 0,
        "text-truncate": preset.context_tokens, "label-truncate": preset.label_tokens, "truncate": longest,
        "batchsize": preset.batch, "lr-scheduler": "none", "skip-generation": True,
    })]  # fmt: skip


def _words(flags: dict[str, Any]) -> list[str]:
    return [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]


# ---- a row of ours ---------------------------------------------------------------------------------------------


def serve_ours(name: str, precision: str, threads: int) -> None:
    """Be the server of one row: the trainer's own steps, a copy of the teacher in memory."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start() -> tuple[Any, dict[str, Any]]:
            import torch
            from step import ds_configs, recipe_of, trainer_of

            from distill_engine.arithmetic.products import library
            from distill_engine.engine import distributed

            preset = PRESETS[name]
            ranks = distributed.start()
            stack.callback(distributed.stop)
            torch.set_num_threads(threads)  # after the start, which shares the machine's cores out among ranks
            recipe = recipe_of(name, preset, "replica")
            trainer = stack.enter_context(trainer_of(recipe, preset, ds_configs(recipe, precision, ranks), ranks))
            module = trainer.student.module  # type: ignore[attr-defined]
            teacher = trainer.teacher.engine.model  # type: ignore[union-attr]
            return trainer._step, {
                "precision": precision,
                "trained": sum(p.numel() for p in module.parameters() if p.requires_grad),
                "teacher": sum(p.numel() for p in teacher.parameters()),
                "teacher_trained": sum(p.numel() for p in teacher.parameters() if p.requires_grad),
                "losses": sorted(term for term, weight in recipe.losses.weights.root.items() if weight),
                "float32_products": library(),
            }

        serve(start, PRESETS[name].warm_up)


def show(rows: dict[str, dict[str, Any]]) -> None:
    """The table, on standard error: standard output holds the one line."""
    table = Table(title="One training step")
    for header in ("", "ms", "CPU ms", "times ParlAI's speed", "in CPU time", "GFLOP of products", "trained"):
        table.add_column(header, justify="right" if header else "left")
    for name, row in rows.items():
        ratios = (row.get("times_as_fast"), row.get("cpu_times_as_fast"))
        table.add_row(
            ROWS[name],
            f"{1000 * row['seconds_per_step']:.0f}",
            f"{1000 * row['cpu_seconds_per_step']:.0f}",
            *("" if ratio is None else f"{ratio:.3f}" for ratio in ratios),
            f"{row['products_gflop']:.1f}",
            f"{row['trained']:,}",
        )
    Console(width=120, stderr=True).print(table)


if __name__ == "__main__":
    sys.exit(main())
