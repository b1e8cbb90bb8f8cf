"""ParlAI's own numbers: every loss term, gradient and training curve of every case folder.

Cases lie in tests/golden/cases; GOLDEN_DIR names one more folder of the same form. Folders are discovered.
Tolerances are those of the cases' own documentation: terms and totals 2e-5 relative, gradients 5e-4 of the tensor's
norm (floored at 1e-4 of the total gradient norm), curves 1e-4 relative, logits 1e-4 absolute.
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
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM

from distill_engine.losses.config import LossWeights
from distill_engine.losses.kernels.dispatch import REFERENCE, Kernels
from distill_engine.losses.objective import Objective, TermValue
from distill_engine.models.adapter import adapt
from distill_engine.student.layer_map import resolve_layer_map
from distill_engine.student.projections import Projections, StudentModule
from distill_engine.values import AttentionKind, Batch, FeatureRequest, Features, Stack, Tokens

HERE = Path(__file__).parent
TERM_NAMES = {
    "task": "task", "encoder": "encoder", "enc_emb": "encoder_embedding", "dec_emb": "decoder_embedding",
    "enc_hidden": "encoder_hidden", "dec_hidden": "decoder_hidden", "enc_self_attn": "encoder_self_attention",
    "dec_self_attn": "decoder_self_attention", "enc_dec_attn": "cross_attention", "pred": "prediction",
}  # fmt: skip
TERM, TOTAL, GRAD, CURVE, LOGITS = 2e-5, 2e-5, 5e-4, 1e-4, 1e-4


def discover() -> list[Path]:
    roots = [HERE / "cases"] + ([Path(os.environ["GOLDEN_DIR"])] if os.environ.get("GOLDEN_DIR") else [])
    cases = [path.parent for root in roots for path in sorted(root.glob("*/expected.json"))]
    empty = [str(root) for root in roots if not any(root.glob("*/expected.json"))]
    if empty:
        raise FileNotFoundError(f"no golden case found in {', '.join(empty)}")
    return cases


CASES = discover()
by_case = pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
# "fused" is chunked PyTorch on a CPU and Triton on a GPU; tests/conftest.py has Triton interpreted on CPUs
KERNELS = {"reference": REFERENCE, "fused-chunked": Kernels("chunked", "chunked", "chunked")}
TRITON = {"fused-triton": Kernels("triton", "triton", "triton")}
by_kernels = pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)


@dataclass
class Case:
    folder: Path
    expected: dict
    batches: list[Batch]

    @property
    def shared_heads(self) -> bool:
        """Whether the scores of both models can be compared."""
        return self.expected["teacher_shape"]["heads"] == self.expected["student_shape"]["heads"]

    def weights(self, coefficients: dict) -> LossWeights:
        """ParlAI's wide agents know no embedding and attention terms."""
        narrow = self.expected["narrow"]
        return LossWeights(
            task=coefficients["task"], encoder=coefficients["encoder"], hidden=coefficients["hidden"],
            prediction=coefficients["pred"],
            embedding=coefficients["embedding"] if narrow else 0,
            self_attention=coefficients["self_attn"] if narrow else 0,
            cross_attention=coefficients["enc_dec_attn"] if narrow else 0,
        )  # fmt: skip

    def objective(self, weights: LossWeights, kernels: Kernels = REFERENCE) -> Objective:
        teacher, student = self.expected["teacher_shape"], self.expected["student_shape"]
        maps = {
            Stack.ENCODER: parlai_map(teacher["enc"], student["enc"]),
            Stack.DECODER: parlai_map(teacher["dec"], student["dec"]),
        }
        return Objective(weights, maps, definition="parlai", kernels=kernels)

    def teacher(self) -> nn.Module:
        return adapt(AutoModelForSeq2SeqLM.from_pretrained(self.folder / "teacher")).eval()

    def student(self, request: FeatureRequest) -> StudentModule:
        adapter = adapt(AutoModelForSeq2SeqLM.from_pretrained(self.folder / "student"))
        for name in self.expected["frozen_params"]:
            adapter.get_submodule("model").get_parameter(name).requires_grad_(False)
        projections = None
        if self.expected["narrow"]:
            widths = self.expected["student_shape"]["d"], self.expected["teacher_shape"]["d"]
            projections = Projections(request, *widths, seed=0)
            stored = load_file(self.folder / "projections.safetensors")
            projections.load_state_dict(
                {name: stored[parlai_projection_name(name)] for name in projections.state_dict()}
            )
        return StudentModule(adapter, projections).train()


def parlai_map(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    if student_layers > teacher_layers:  # ParlAI wraps -1 to the last layer; ours asks for an explicit list
        raw = [int((i + 1) * (teacher_layers / student_layers)) - 1 for i in range(student_layers)]
        return resolve_layer_map([n % teacher_layers for n in raw], teacher_layers, student_layers)
    return resolve_layer_map("parlai", teacher_layers, student_layers)


def parlai_projection_name(name: str) -> str:
    for ours, theirs in (
        ("encoder_output", "encoder_proj_layer"),
        ("embedding", "embedding_proj_layers"),
        ("hidden", "hidden_proj_layers"),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


@lru_cache
def load_case(folder: Path) -> Case:
    expected = json.loads((folder / "expected.json").read_text())
    tensors = load_file(folder / "batches.safetensors")
    batches = []
    for number in range(len(expected["batches"])):
        part = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{number}.")}
        batches.append(
            Batch.of(
                Tokens(part["input_ids"].long(), part["attention_mask"].long()),
                part["decoder_input_ids"].long(),
                part["labels"].long(),
            )
        )
    return Case(folder, expected, batches)


def loss_and_terms(student: StudentModule, teacher: nn.Module, objective: Objective, batch: Batch):
    with torch.no_grad():
        teacher_features = teacher(batch, objective.teacher_request())
    student_features, _ = student(batch, objective.student_request())
    terms = objective.terms(student_features, teacher_features, batch)
    divisors = objective.divisors([batch], lambda t: t, world_size=1)
    return objective.total(terms, divisors[0]), terms


def close(actual: float, expected: float, relative: float, what: str) -> None:
    assert actual == pytest.approx(expected, rel=relative, abs=1e-7), what


def everything(case: Case, kernels: Kernels) -> Objective:
    """All terms that the two models have in common, weighted 1."""
    shared_heads = float(case.shared_heads)
    heads = {"self_attention": shared_heads, "cross_attention": shared_heads}
    return case.objective(LossWeights(dict.fromkeys(LossWeights.fields(), 1) | heads), kernels)


def check_terms(case: Case, number: int, terms: dict[str, TermValue]) -> None:
    """Every term of a batch, and every layer's part."""
    expected = case.expected["batches"][number]
    known = expected["terms"] | expected["terms_not_in_total"]
    for theirs, ours in TERM_NAMES.items():
        if known.get(theirs) is None or ours not in terms:
            assert not case.shared_heads and "attn" in theirs, f"{theirs} was not computed"
            continue
        value = terms[ours]
        close((value.sum / value.count).item(), known[theirs], TERM, f"batch {number} {theirs}")
        for layer, layer_value in enumerate(expected["per_layer"].get(theirs, [])):
            got = (value.per_layer[layer] / value.count).item()
            close(got, layer_value, TERM, f"batch {number} {theirs} layer {layer}")


def check_gradients(case: Case, number: int, name: str, student: StudentModule) -> None:
    """Norms of all gradients of a batch under a coefficient set, and for the first batch the gradients themselves."""
    gradients = named_gradients(student)
    expected = case.expected["batches"][number]
    floor = 1e-4 * expected["total_grad_norm"][name]
    stored = load_file(case.folder / "grads.safetensors")
    for parameter, norm in expected["grad_norm"][name].items():
        gradient = gradients.pop(parameter, None)
        actual = 0.0 if gradient is None else gradient.norm().item()
        assert abs(actual - norm) <= GRAD * max(norm, floor), f"batch {number} {name} |{parameter}|"
        if number == 0 and gradient is not None:
            reference = stored[f"{name}/{parameter}"]
            error = (gradient - reference).norm().item()
            assert error <= GRAD * max(reference.norm().item(), floor), f"{name} {parameter}"
    assert not gradients, f"gradients ParlAI does not have: {sorted(gradients)}"


@by_kernels
@by_case
def test_terms_layers_and_totals(folder: Path, kernels: Kernels) -> None:
    case = load_case(folder)
    teacher, goal = case.teacher(), everything(case, kernels)
    for number, batch in enumerate(case.batches):
        _, terms = loss_and_terms(case.student(goal.student_request()), teacher, goal, batch)
        check_terms(case, number, terms)
        for name, coefficients in case.expected["coeff_sets"].items():
            objective = case.objective(case.weights(coefficients), kernels)
            total, _ = loss_and_terms(case.student(objective.student_request()), teacher, objective, batch)
            expected = case.expected["batches"][number]["totals"][name]
            close(total.item(), expected, TOTAL, f"batch {number} total {name}")


@by_kernels
@by_case
def test_gradients(folder: Path, kernels: Kernels) -> None:
    case = load_case(folder)
    teacher = case.teacher()
    for name, coefficients in case.expected["coeff_sets"].items():
        objective = case.objective(case.weights(coefficients), kernels)
        for number, batch in enumerate(case.batches):
            student = case.student(objective.student_request())
            loss_and_terms(student, teacher, objective, batch)[0].backward()
            check_gradients(case, number, name, student)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="Triton is not interpreted here (DS_ACCELERATOR is not cpu), and these tensors lie on the CPU",
)
@pytest.mark.parametrize("kernels", TRITON.values(), ids=TRITON)
@by_case
def test_terms_total_and_gradients_in_one_pass(folder: Path, kernels: Kernels) -> None:
    """The first batch and coefficient set: interpreted kernels take seconds for each pass instead of milliseconds."""
    case = load_case(folder)
    name, coefficients = next(iter(case.expected["coeff_sets"].items()))
    goal, objective, batch = everything(case, kernels), case.objective(case.weights(coefficients)), case.batches[0]
    student = case.student(goal.student_request())
    _, terms = loss_and_terms(student, case.teacher(), goal, batch)
    check_terms(case, 0, terms)
    weighed = {term: terms[term] for term in objective.term_weights}
    total = objective.total(weighed, objective.divisors([batch], lambda t: t, world_size=1)[0])
    close(total.item(), case.expected["batches"][0]["totals"][name], TOTAL, f"total {name}")
    total.backward()
    check_gradients(case, 0, name, student)


def named_gradients(student: StudentModule) -> dict[str, Tensor]:
    found = {n: p.grad for n, p in student.model.named_parameters() if p.grad is not None}
    if student.projections is not None:
        for name, parameter in student.projections.named_parameters():
            if parameter.grad is not None:
                found[parlai_projection_name(name)] = parameter.grad
    return found


@by_kernels
@by_case
@pytest.mark.parametrize("optimizer_name", ["sgd", "adam"])
def test_training_curves(folder: Path, optimizer_name: str, kernels: Kernels) -> None:
    case = load_case(folder)
    curve = case.expected["curves"][optimizer_name]
    objective = case.objective(case.weights(case.expected["coeff_sets"][curve["coeffs"]]), kernels)
    teacher, student = case.teacher(), case.student(objective.student_request())
    trained = [p for p in student.parameters() if p.requires_grad]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer_name]
    optimizer = kind(trained, lr=curve["lr"])
    for step, expected in enumerate(curve["losses"]):
        loss, _ = loss_and_terms(student, teacher, objective, case.batches[step % len(case.batches)])
        close(loss.item(), expected, CURVE, f"step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for number, expected in enumerate(curve["final_loss_per_batch"]):
        loss, _ = loss_and_terms(student, teacher, objective, case.batches[number])
        close(loss.item(), expected, CURVE, f"final loss of batch {number}")


@by_case
def test_intermediates(folder: Path) -> None:
    file = folder / "intermediates.safetensors"
    if not file.is_file():
        pytest.skip("this case has no intermediates")
    case = load_case(folder)
    stored = load_file(file)
    batch = case.batches[0]
    everything = case.objective(LossWeights(**dict.fromkeys(LossWeights.fields(), 1)))
    with torch.no_grad():
        captured = {
            "student": case.student(everything.student_request()).adapter(batch, everything.student_request()),
            "teacher": case.teacher()(batch, everything.teacher_request()),
        }
    compared = 0
    for name, reference in stored.items():
        owner, _, field = name.partition("/")
        if owner not in captured:
            continue
        if field == "logits" and case.expected["family"] == "bart" and case.expected["ids"] == "hf":
            # stored in ParlAI's vocabulary order, where pad and start have each other's id
            reference = reference[..., [1, 0, *range(2, reference.shape[-1])]]
        value, mask = pick(captured[owner], field, batch, case.expected["family"] == "bart")
        if value is not None:
            error = ((value - reference).abs() * mask).max().item()
            assert error <= LOGITS * max(1.0, reference.abs()[mask.expand_as(reference)].max().item()), name
            compared += 1
    assert compared >= 10


def pick(features: Features, field: str, batch: Batch, bart: bool) -> tuple[Tensor | None, Tensor]:
    """The tensor of that name and a mask of the positions that count, or None for a layer that is not mapped."""
    stacks = {"enc": Stack.ENCODER, "dec": Stack.DECODER}
    masks = {Stack.ENCODER: batch.context_mask[..., None], Stack.DECODER: batch.label_mask[..., None]}
    if field == "logits":
        logits, mask = features.logits, masks[Stack.DECODER]
        return (logits[:, 1:], mask[:, 1:]) if bart else (logits, mask)
    if field == "enc_out":
        return features.encoder_output, masks[Stack.ENCODER]
    if field.endswith("_emb"):
        stack = stacks[field[:3]]
        return features.embeddings[stack], masks[stack]
    kind_name, _, layer = field.partition(".")
    if kind_name.endswith("_hidden"):
        stack = stacks[kind_name[:3]]
        return features.hidden.get((stack, int(layer))), masks[stack]
    kinds = {
        "enc_self_attn": AttentionKind.ENCODER_SELF,
        "dec_self_attn": AttentionKind.DECODER_SELF,
        "enc_dec_attn": AttentionKind.CROSS,
    }
    kind = kinds[kind_name]
    found = features.attention.get((kind, int(layer)))
    if found is None:
        return None, masks[Stack.ENCODER]
    scores = found.query @ found.key.transpose(-1, -2) * found.scale
    pairs = masks[kind.query_stack][:, None]
    if kind is AttentionKind.DECODER_SELF:
        length = scores.shape[-1]
        pairs = pairs & torch.ones(length, length, dtype=torch.bool).tril()
    else:
        pairs = pairs & batch.context_mask[:, None, None, :]
    return scores, pairs


@by_case
def test_mapped_layers(folder: Path) -> None:
    expected = load_case(folder).expected
    teacher, student = expected["teacher_shape"], expected["student_shape"]
    assert list(parlai_map(teacher["enc"], student["enc"])) == [
        n % teacher["enc"] for n in expected["mapped_enc_layers"]
    ]
    assert list(parlai_map(teacher["dec"], student["dec"])) == [
        n % teacher["dec"] for n in expected["mapped_dec_layers"]
    ]


def test_layer_maps() -> None:
    maps = json.loads((HERE / "layer_maps.json").read_text())["maps"]
    assert len(maps) > 1000
    for name, expected in maps.items():
        teacher_layers, student_layers = map(int, name.split("->"))
        assert parlai_map(teacher_layers, student_layers) == tuple(n % teacher_layers for n in expected), name
