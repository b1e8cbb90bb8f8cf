"""Numbers of two living peers, seq2seq-distillation and Distil-Whisper, for further families: terms, totals, gradients.

Cases lie in tests/golden/peers; GOLDEN_PEERS_DIR names one more folder of the same form. Folders are discovered. The
peers' own loss functions made them on plain transformers, in fp32: an oracle that this code never writes.
Tolerances: terms and totals 2e-5 relative, gradients 5e-4 of the tensor's norm (floored at 1e-4 of the total norm).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill_engine.losses.config import LossWeights
from distill_engine.losses.kernels.dispatch import REFERENCE, Kernels
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.models.loading import Checkpoint
from distill_engine.values import Audio, Batch, Stack, Tokens

HERE = Path(__file__).parent
TERM, GRAD = 2e-5, 5e-4
TERMS = {
    "task": "task", "prediction": "prediction_T2_times_T2",
    "encoder_hidden": "encoder_hidden_layer0", "decoder_hidden": "decoder_hidden_layer0",
}  # fmt: skip
TOTALS = {
    "distil_whisper": {"task": 0.8, "prediction": 1.0},
    "seq2seq_distillation": {"task": 0.2, "prediction": 0.8, "hidden": 3.0},
}
KERNELS = {
    "reference": REFERENCE,
    "chunked": Kernels("chunked", "chunked", "chunked"),
    "triton": Kernels("triton", "triton", "triton"),
}
needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="Triton is not interpreted here (DS_ACCELERATOR is not cpu), and these tensors lie on the CPU",
)
by_kernels = pytest.mark.parametrize(
    "kernels", [pytest.param(k, marks=[needs_interpreter] * (name == "triton"), id=name) for name, k in KERNELS.items()]
)


def discover() -> list[Path]:
    further = os.environ.get("GOLDEN_PEERS_DIR")
    roots = [HERE / "peers", *([Path(further)] if further else [])]
    found = {root: sorted(file.parent for file in root.glob("*/expected.json")) for root in roots}
    empty = [str(root) for root, cases in found.items() if not cases]
    if empty:
        raise FileNotFoundError(f"no peer's case found in {', '.join(empty)}")
    return [case for cases in found.values() for case in cases]


by_case = pytest.mark.parametrize("folder", [pytest.param(folder, id=folder.name) for folder in discover()])


@dataclass
class Case:
    folder: Path
    expected: dict
    batches: list[Batch]

    def objective(self, weights: dict[str, float], kernels: Kernels) -> Objective:
        """Student layer 0 alone is compared."""
        supervision = {s: (self.expected[f"{s.value}_supervision_of_student_layer_0"],) for s in Stack}
        return Objective(
            LossWeights(**weights), supervision, temperature=self.expected["temperature"], clamp=None, kernels=kernels
        )


@lru_cache
def load_case(folder: Path) -> Case:
    expected = json.loads((folder / "expected.json").read_text())
    tensors = load_file(folder / "batches.safetensors")
    batches = []
    for number in range(len(expected["batches"])):
        own = {name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{number}.")}
        batches.append(Batch.of(inputs_of(own), own["decoder_input_ids"].long(), own["labels"].long()))
    return Case(folder, expected, batches)


def inputs_of(tensors: dict[str, torch.Tensor]) -> Tokens | Audio:
    """Frames of sound make half as many positions, all of which count."""
    if "input_ids" in tensors:
        return Tokens(tensors["input_ids"].long(), tensors["attention_mask"].long())
    features = tensors["input_features"]
    return Audio(features, torch.ones(len(features), features.shape[2] // 2, dtype=torch.long))


def shown_by(folder: Path):
    return adapt(Checkpoint(folder).load(torch.float32)).eval()


def check_case(case: Case, kernels: Kernels, numbers: range) -> None:
    teacher, student = shown_by(case.folder / "teacher"), shown_by(case.folder / "student")
    stored = load_file(case.folder / "grads.safetensors")
    for number in numbers:
        batch, expected = case.batches[number], case.expected["batches"][number]
        assert int(batch.label_mask.sum()) == expected["labels"]
        for name, weights in TOTALS.items():
            goal = case.objective(weights, kernels)
            with torch.no_grad():
                teacher_features = teacher(batch, goal.teacher_request())
            student.zero_grad()
            terms = goal.terms(student(batch, goal.student_request()), teacher_features, batch)
            total = goal.total(terms, goal.divisors([batch], lambda t: t, world_size=1)[0])
            for term, value in terms.items():
                found = (value.sum / value.count).item()
                assert found == pytest.approx(expected["terms"][TERMS[term]], rel=TERM), f"batch {number} {term}"
            assert total.item() == pytest.approx(expected["totals"][name], rel=TERM), f"batch {number} {name}"
            total.backward()
            check_gradients(student.model, expected["grad_norm"][name], stored if number == 0 else {}, name)


def check_gradients(model, norms: dict[str, float], stored: dict, name: str) -> None:
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    floor = 1e-4 * sum(norm**2 for norm in norms.values()) ** 0.5
    for parameter, norm in norms.items():
        gradient = found.pop(parameter, None)
        actual = 0.0 if gradient is None else gradient.norm().item()
        assert abs(actual - norm) <= GRAD * max(norm, floor), f"{name} |{parameter}|"
        reference = stored.get(f"{name}/{parameter}")
        if reference is not None:
            assert (gradient - reference).norm().item() <= GRAD * max(norm, floor), f"{name} {parameter}"
    assert all(not gradient.any() for gradient in found.values()), f"gradients the peers do not have: {sorted(found)}"


@by_kernels
@by_case
def test_terms_totals_and_gradients(folder: Path, kernels: Kernels) -> None:
    """All batches; interpreted kernels take seconds for each pass, so the first one alone with them."""
    case = load_case(folder)
    check_case(case, kernels, range(1 if kernels == KERNELS["triton"] else len(case.batches)))


@by_case
def test_logits_are_plain_transformers(folder: Path) -> None:
    case = load_case(folder)
    for owner in ("teacher", "student"):
        adapter = shown_by(folder / owner)
        for batch, expected in zip(case.batches, case.expected["batches"], strict=True):
            goal = case.objective({"task": 1.0, "prediction": 0.0}, REFERENCE)
            with torch.no_grad():
                logits = adapter(batch, goal.student_request()).logits
            found = logits[batch.label_mask].double().sum().item()
            assert found == pytest.approx(expected[f"{owner}_logits_sum"], rel=1e-4, abs=1e-2)
