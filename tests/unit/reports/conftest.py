"""A run folder with everything a run can record, written by the sink that runs use."""

import math
import random
from pathlib import Path

import pytest

from distill_engine.recipe.identity import resolved_yaml
from distill_engine.recipe.load import load_recipe
from distill_engine.reports.history import read_run
from distill_engine.reports.run_report import run_report
from distill_engine.telemetry.jsonl import JsonlSink
from distill_engine.telemetry.metrics import TIME_PARTS, terms
from distill_engine.telemetry.sinks import Record

ROOT = Path(__file__).parents[3]
WEIGHTS = {"task": 1.0, "prediction": 4.0}
WITHOUT_LAYERS = ("task", "encoder", "encoder_embedding", "decoder_embedding", "prediction")
LAYERS = 3


def train_values(step: int, noise: random.Random) -> dict[str, float]:
    values = {"train/lr": 1e-3 * (1 - step / 500), "train/grad_norm": 2 + noise.random(), "train/loss_scale": 1.0}
    values |= {"train/skipped_steps": 0.0, "train/epoch": step / 100, "train/examples": 64.0 * step}
    values |= {"train/tokens_per_second": 5000 + 300 * noise.random(), "train/padding_share": 0.3}
    values |= {"time/seconds_per_step": 0.2, "memory/host_gib": 1.5, "memory/peak_gib": 3.0}
    for index, term in enumerate(terms()):
        raw = 10 ** (index % 4) * math.exp(-step / 150) * (1 + 0.1 * noise.random())
        values[f"train/term/{term}/raw"] = raw
        values[f"train/term/{term}/weighted"] = WEIGHTS.get(term, 0.1) * raw
        if term not in WITHOUT_LAYERS:
            values |= {f"train/term/{term}/layer/{n}": raw * (n + 1) / 2 for n in range(LAYERS)}
    values["train/total"] = sum(values[f"train/term/{term}/weighted"] for term in terms())
    values |= {"train/ppl": math.exp(values["train/term/task/raw"]), "train/token_accuracy": 1 - math.exp(-step / 90)}
    values["train/teacher_agreement"] = 0.9 * values["train/token_accuracy"]
    for index, term in enumerate(terms() if step % 20 == 0 else ()):
        values |= {f"train/gradient_norm/{term}": 1.0 + index + 1 / step, f"train/gradient_share/{term}": index / 45}
    parts = {part: 1 + noise.random() for part in TIME_PARTS}
    return values | {f"time/share/{part}": value / sum(parts.values()) for part, value in parts.items()}


def values_of_validation(step: int) -> dict[str, float]:
    ppl = {"chat": 3 + 60 * math.exp(-step / 80) + (step / 300) ** 2, "sums": 2 + 30 * math.exp(-step / 60)}
    values: dict[str, float] = {}
    of_teacher = {"teacher_agreement": 0.7, "teacher_ppl": 2.5, "teacher_token_accuracy": 0.8}
    for dataset, value in ppl.items():
        named = {"ppl": value, "loss": math.log(value), "token_accuracy": 0.5, "token_exact_match": 0.1}
        values |= {f"valid/{dataset}/{name}": one for name, one in (named | of_teacher).items()}
    for name in ("ppl", "loss", "token_accuracy", "token_exact_match", *of_teacher):
        values[f"valid/{name}"] = sum(values[f"valid/{dataset}/{name}"] for dataset in ppl) / 2
    values |= {"valid/ppl_micro": values["valid/ppl"], "valid/total": 3.0, "valid/seconds": 2.5}
    return values | {f"valid/term/{term}/raw": 1.0 for term in terms()}


def write_run(folder: Path, steps: int = 400) -> Path:
    folder.mkdir(parents=True)
    recipe = load_recipe(ROOT / "recipes" / "demo.yaml")
    (folder / "recipe.yaml").write_text(resolved_yaml(recipe), encoding="utf-8")
    noise, best = random.Random(1), math.inf
    sink = JsonlSink(folder / "metrics.jsonl")
    sink.write(Record("event", 0, 0.0, {}, "started <here> & now"))
    for step in range(10, steps + 1, 10):
        values = train_values(step, noise)
        if step == 50:
            values["train/grad_norm"] = math.inf
        sink.write(Record("train", step, step / 5, values))
        if step % 50 == 0:
            valid = values_of_validation(step)
            best = min(best, valid["valid/ppl"])
            sink.write(Record("valid", step, step / 5, {**valid, "best/ppl": best}))
            rows = [
                {
                    "dataset": "chat",
                    "context": f"c{n}",
                    "reference": f"<g{n}>",
                    "teacher": f"t{n}",
                    "student": f"s{n} {step}",
                }
                for n in (0, 1)
            ]
            sink.write(Record("samples", step, step / 5, rows=tuple(rows)))
    sink.close("finished")
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A run of 400 of 400 steps; not to be changed."""
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="session")
def text(run_folder) -> str:
    """That run's page."""
    return run_report(read_run(run_folder))


@pytest.fixture(scope="session")
def valid_values():
    """step -> values of the validation at that step."""
    return values_of_validation
