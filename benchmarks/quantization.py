"""What int8 costs a student, and what its last steps in int8 (`student.quantize: int8`) bring back.

    python benchmarks/quantization.py [--recipe FILE] [--seeds 3] [--set a.b=value] [--run-dir DIR] [--out FILE]

Two students of each seed, of the same recipe and as many steps: `plain`, and `aware`, whose last tenth is int8's. The
best of each run is measured teacher-forced on all validation examples, in full precision and in the int8 of each
program: `imitated` is what training computes, the others are exports as they are (those of ONNX Runtime and CTranslate2
where the extras are installed). `loss` is the perplexity in int8 over that of the plain student of the same seed and
program in full precision, less 1. Runs are kept in --run-dir, and one that is complete there is not repeated. Writes
JSON and prints a table.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from runs import complete, finished, options_over_seeds, outcome, this_machine
from torch import Tensor
from torch.nn import functional

from distill_engine.evaluate.compare import prepared, split_datasets
from distill_engine.evaluate.measure import load_model
from distill_engine.evaluate.set import EvaluationSet
from distill_engine.export.backends import int8_twin
from distill_engine.export.convert import converted
from distill_engine.families.lookup import family_of, start_of
from distill_engine.models.adapter import adapt, masked_logit_value
from distill_engine.models.fake_int8 import with_fake_int8
from distill_engine.telemetry.machine import machine_record
from distill_engine.values import IGNORED_LABEL, Batch, FeatureRequest

ARMS = {"plain": (), "aware": ("student.quantize=int8",)}
WHOLE = {"imitated": "torch", "torch-int8": "torch", "onnx-int8": "onnx", "ctranslate2-int8": "ctranslate2"}
LogProbabilities = Callable[[Batch], Tensor]  # a batch -> those of its labels, the N that count


def main() -> int:
    """Make what is missing, measure, write, and return 0; 1 if nothing is complete yet."""
    parser = options_over_seeds(__doc__, "quantization", "whose student is trained")
    given = parser.parse_args()
    machine = this_machine(given.ranks, given.ds_config)
    rows: list[dict[str, Any]] = []
    facts = {"recipe": given.recipe.name, "overrides": given.overrides, "ranks": machine.ranks}
    for seed in range(1, given.seeds + 1):
        for arm, own in ARMS.items():
            folder, overrides = given.run_dir / f"{arm}-{seed}", [*own, *given.overrides, f"seed={seed}"]
            if given.no_run and not complete(folder, overrides, given.recipe):
                continue
            run = outcome(folder) if given.no_run else finished(folder, machine, overrides, given.recipe)
            rows.append({"seed": seed, "student": arm, "run": run, "ppl": measured(folder, given.recipe, overrides)})
            sys.stderr.write(f"{folder.name}: {json.dumps(rows[-1]['ppl'])}\n")
        write(given.out, facts, rows)  # what is complete counts, should the next seed not come to its end
    sys.stdout.write(markdown(rows))
    return 0 if rows else 1


def write(file: Path, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """What has been measured so far, and where."""
    libraries = {name: version(name) for name in ("torch", "onnxruntime", "ctranslate2") if _installed(name)}
    result = {**facts, "libraries": libraries, "machine": machine_record(), "losses": losses(rows), "rows": rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def measured(run: Path, recipe: Path, overrides: Sequence[str]) -> dict[str, float]:
    """Perplexity of the run's best student on all validation examples, by program."""
    student = run / "best"
    ready = prepared([str(student)], recipe, list(overrides))
    datasets = tuple(split_datasets(ready, "valid").values())
    examples = EvaluationSet(datasets, ready.layout, ready.tokenizer, 32)
    batches = [examples.batch(number) for number in range(len(examples))]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in programs(student, Path(folder)).items():
            logs = torch.cat([model(batch).double() for batch in batches])
            found[name] = math.exp(-float(logs.mean()))
    return found


def programs(student: Path, folder: Path) -> dict[str, LogProbabilities]:
    """All that can run here, in full precision and in int8."""
    device = torch.device("cpu")
    plain: Any = load_model(student, device)
    imitated: Any = load_model(student, device)
    tables = [stack.embedding for stack in family_of(imitated.config).parts(imitated).stacks.values()]
    with_fake_int8(imitated, tables).on = True
    rounded = int8_twin(plain)  # before `plain` is adapted: PyTorch knows plain linear layers only
    found = {
        "torch": _by_adapter(plain),
        "imitated": _by_adapter(imitated),
        "torch-int8": _by_adapter(rounded),
    }
    if _installed("onnxruntime"):
        for name, kind in (("onnx", None), ("onnx-int8", "int8")):
            found[name] = _by_logits(converted(student, "onnx", kind, folder / name))
    if _installed("ctranslate2"):
        for name, kind in (("ctranslate2", None), ("ctranslate2-int8", "int8")):
            found[name] = _by_score(converted(student, "ctranslate2", kind, folder / name))
    return found


def _by_adapter(model: Any) -> LogProbabilities:
    adapter = adapt(model).eval()
    return lambda batch: _picked(adapter(batch, FeatureRequest(logits=True)).logits, batch.labels)


def _by_logits(model: Any) -> LogProbabilities:
    """ONNX Runtime's; what is never predicted is masked as training masks it."""
    masked = family_of(model.config).masked_id(start_of(model.config))

    def scored(batch: Batch) -> Tensor:
        given = batch.inputs.keywords
        hidden = model.get_encoder()(**given)
        logits = model(batch.decoder_input_ids, hidden, given["attention_mask"]).logits
        if masked is not None:
            logits[..., masked] = masked_logit_value(logits.dtype)
        return _picked(logits, batch.labels)

    return scored


def _picked(logits: Tensor, labels: Tensor) -> Tensor:
    counted = labels != IGNORED_LABEL
    return -functional.cross_entropy(logits[counted], labels[counted], reduction="none")


def _by_score(model: Any) -> LogProbabilities:
    """CTranslate2's own, which masks nothing: to be compared with its own in full precision."""

    def scored(batch: Batch) -> Tensor:
        ids, mask = batch.inputs.keywords["input_ids"], batch.inputs.keywords["attention_mask"]
        source = [model._said(row[:length]) for row, length in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
        kept = [[one for one in row if one != IGNORED_LABEL] for row in batch.labels.tolist()]
        target = [model._said(row[:-1]) for row in kept]  # it adds the end token itself
        results = model._translator.score_batch(source, target)
        return torch.tensor([value for one in results for value in one.log_probs])

    return scored


def losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Student -> program -> for each seed, perplexity in int8 over the plain student's in full precision, less 1."""
    whole = {row["seed"]: row["ppl"] for row in rows if row["student"] == "plain"}
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for program, full in WHOLE.items():
            if program in row["ppl"] and row["seed"] in whole:
                value = row["ppl"][program] / whole[row["seed"]][full] - 1.0
                found.setdefault(row["student"], {}).setdefault(program, []).append(value)
    return found


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean perplexities over seeds, and what int8 costs."""
    lost = losses(rows)
    lines = ["| program | plain | in int8 | loss | aware, in int8 | loss |", "|---|---:|---:|---:|---:|---:|"]

    def mean(student: str, program: str) -> float:
        return statistics.mean(row["ppl"][program] for row in rows if row["student"] == student)

    for program, full in WHOLE.items():
        if program in lost.get("plain", {}) and program in lost.get("aware", {}):
            plain, aware = (f"{statistics.mean(lost[arm][program]):+.2%}" for arm in ARMS)
            lines.append(
                f"| {program} | {mean('plain', full):.4f} | {mean('plain', program):.4f} | {plain} "
                f"| {mean('aware', program):.4f} | {aware} |"
            )
    return "\n".join(lines) + "\n"


def _installed(library: str) -> bool:
    try:
        __import__(library)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
