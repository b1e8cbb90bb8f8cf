"""Who computes what: the choice, its line, refusals; and that every implementation gives an objective's numbers."""

import importlib.util
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from distill_engine.losses.config import LossWeights
from distill_engine.losses.kernels import dispatch
from distill_engine.losses.kernels.dispatch import SMALL_LOGITS_BYTES, KernelError, Kernels, choose
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.student.projections import Projections, StudentModule
from distill_engine.values import AttentionKind, QueryKey, Stack

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BIG, SMALL = SMALL_LOGITS_BYTES, SMALL_LOGITS_BYTES - 1
EVERYTHING = LossWeights(task=1, encoder=2, embedding=4, hidden=64, self_attention=4, cross_attention=64, prediction=64)
FUSED = {"attention": "fused", "hidden": "fused", "prediction": "fused"}


@pytest.fixture
def gpu(monkeypatch):
    """Answers for a GPU that this machine need not have."""

    def pretend(capability=(9, 0), triton="3.6.0", shared=232448):
        facts = SimpleNamespace(shared_memory_per_block_optin=shared)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
        monkeypatch.setattr(dispatch, "_triton_version", lambda: triton)

    return pretend


@pytest.mark.parametrize(
    ("asked", "bytes_", "chosen"),
    [
        ({}, BIG, Kernels("chunked", "chunked", "chunked")),
        ({}, SMALL, Kernels("chunked", "chunked", "reference")),
        (FUSED, SMALL, Kernels("chunked", "chunked", "chunked")),
        ({"attention": "reference", "prediction": "fused"}, SMALL, Kernels("reference", "chunked", "chunked")),
        ({"attention": "auto", "hidden": "reference"}, BIG, Kernels("chunked", "reference", "chunked")),
    ],
)
def test_on_a_cpu_fused_means_chunked(asked, bytes_, chosen):
    kernels, line = choose(asked, CPU, bytes_)
    assert kernels == chosen
    assert line == (
        f"loss kernels: attention {chosen.attention}, hidden {chosen.hidden}, prediction {chosen.prediction}"
    )


def test_on_a_gpu_fused_means_triton(gpu):
    gpu()
    assert choose(FUSED, GPU, SMALL)[0] == Kernels("triton", "triton", "triton")
    assert choose({}, GPU, BIG)[0] == Kernels("triton", "triton", "triton")
    assert choose({}, GPU, SMALL)[0] == Kernels("triton", "triton", "reference")


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"triton": None}, "the package triton is not installed"),
        ({"triton": "3.5.1"}, "the package triton is 3.5.1, older than 3.6"),
        ({"triton": "2.3.0"}, "the package triton is 2.3.0, older than 3.6"),
        ({"capability": (7, 5)}, "the GPU's compute capability is 7.5, below 8.0"),
    ],
)
def test_a_gpu_without_triton(gpu, facts, why):
    gpu(**facts)
    kernels, line = choose({}, GPU, BIG)
    assert kernels == Kernels("chunked", "chunked", "chunked") and line.endswith(f"(no Triton: {why})")
    assert choose({"hidden": "reference"}, GPU, BIG)[0].hidden == "reference"
    with pytest.raises(KernelError, match=rf"losses.kernels.hidden is fused, but {why}. .* set losses.kernels.hidden"):
        choose({"hidden": "fused"}, GPU, BIG)


@pytest.mark.parametrize("version", ["3.6.0", "3.10.0", "4.0.0", "3.9.0+git5bc3d0c8"])
def test_any_later_triton_will_do(gpu, version):
    gpu(triton=version)
    assert choose(FUSED, GPU, BIG)[0] == Kernels("triton", "triton", "triton")


def test_the_installed_triton_is_found():
    triton = pytest.importorskip("triton", reason="the package triton is not installed")
    assert dispatch._triton_version() == triton.__version__


def test_heads_beyond_the_kernels_size_are_computed_in_pytorch(gpu):
    for shared, largest, size in [(232448, 256, 320), (101376, 128, 160)]:
        gpu(shared=shared)
        assert choose({}, GPU, BIG, head_size=largest)[0].attention == "triton"
        kernels, line = choose({}, GPU, BIG, head_size=size)
        assert kernels == Kernels("chunked", "triton", "triton")
        assert f"(no Triton: an attention head has {size} elements, and the kernel takes up to {largest}" in line
        with pytest.raises(KernelError, match=rf"losses.kernels.attention is fused, but an attention head has {size}"):
            choose(FUSED, GPU, BIG, head_size=size)


# ---- the numbers -------------------------------------------------------------------------------------------------

SUPERVISION = {Stack.ENCODER: (1, 0), Stack.DECODER: (0, 2)}


def measured(tiny, family, kernels, weights, temperature=1.0, clamp=65504.0):
    """Terms, hits and gradients of one step through real models, a student narrower than its teacher."""
    objective = Objective(weights, SUPERVISION, temperature=temperature, clamp=clamp, kernels=kernels)
    batch = tiny.batch(family, contexts=(5, 3, 1), labels=(4, 6, 2), pad_to=(7, 9))
    teacher = adapt(tiny.model(family, seed=1, width=20, decoder_layers=3))
    model = tiny.model(family, seed=2, width=16, decoder_layers=2)
    request = objective.student_request()
    student = StudentModule(adapt(model), Projections(request, 16, 20, seed=3)).train()
    with torch.no_grad():
        teacher_features = teacher(batch, objective.teacher_request())
    student_features, _ = student(batch, request)
    assert (student_features.logits is None) == (kernels.prediction != "reference")
    terms, hits = objective.terms_and_hits(student_features, teacher_features, batch)
    objective.total(terms, objective.divisors([batch], lambda t: t, 1)[0]).backward()
    return terms, hits, {name: p.grad for name, p in student.named_parameters()}


@pytest.mark.parametrize("family", ["blenderbot", "bart"])
@pytest.mark.parametrize(
    ("weights", "temperature", "clamp"),
    [
        (EVERYTHING, 1.0, 65504.0),
        (EVERYTHING, 2.0, 0.5),
        (LossWeights(task=0, hidden=1), 1.0, None),
        (LossWeights(task=1, encoder=1), 1.0, None),
        (LossWeights(task=0, prediction=3), 1.0, None),
    ],
)
def test_chunked_gives_the_reference_terms_hits_and_gradients(tiny, family, weights, temperature, clamp):
    wanted = measured(tiny, family, Kernels(), weights, temperature, clamp)
    found = measured(tiny, family, Kernels("chunked", "chunked", "chunked"), weights, temperature, clamp)
    agree(found, wanted)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton is not interpreted (DS_ACCELERATOR)")
def test_triton_gives_the_reference_terms_hits_and_gradients(tiny):
    """Of one family: the golden cases run the kernels with both."""
    weights = EVERYTHING
    found = measured(tiny, "blenderbot", Kernels("triton", "triton", "triton"), weights)
    agree(found, measured(tiny, "blenderbot", Kernels(), weights))


def agree(found, wanted):
    for term, value in wanted[0].items():
        torch.testing.assert_close(found[0][term].sum, value.sum, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[0][term].per_layer, value.per_layer, rtol=1e-5, atol=1e-6)
        assert found[0][term].count == value.count
    assert [int(n) for n in found[1]] == [int(n) for n in wanted[1]]
    for name, gradient in wanted[2].items():
        if gradient is None:
            assert found[2][name] is None, name
        else:
            # a key's bias moves a softmax's scores alike: its gradient is what rounding leaves
            assert (found[2][name] - gradient).norm() <= 1e-4 * gradient.norm() + 3e-6, name


def test_prediction_may_be_computed_in_another_way():
    kernels = Kernels("triton", "chunked", "chunked")
    objective = Objective(LossWeights(task=1, prediction=1), SUPERVISION, kernels=kernels)
    assert objective.student_request().head and not objective.student_request().logits
    whole = objective.with_prediction("reference")
    assert whole.kernels == Kernels("triton", "chunked", "reference")
    assert whole.teacher_request().logits and not whole.teacher_request().head


@pytest.mark.parametrize("kernels", [Kernels(), Kernels("chunked", "chunked", "chunked")], ids=["reference", "chunked"])
def test_padding_may_hold_anything(tiny, kernels):
    """An fp16 overflow at padded positions: neither terms nor gradients may notice."""
    weights = EVERYTHING
    objective = Objective(weights, SUPERVISION, kernels=kernels)
    batch = tiny.batch(contexts=(5, 3), labels=(4, 6), pad_to=(7, 9))
    teacher = adapt(tiny.model("blenderbot", seed=1, width=20, decoder_layers=3))
    found = []
    for poison in (0.0, math.inf, math.nan):
        student = StudentModule(
            adapt(tiny.model("blenderbot", seed=2, width=16, decoder_layers=2)),
            Projections(objective.student_request(), 16, 20, seed=3),
        ).train()
        student_features, _ = student(batch, objective.student_request())
        student_features = poisoned(student_features, batch, poison)
        terms, _ = objective.terms_and_hits(student_features, teacher(batch, objective.teacher_request()), batch)
        sum(value.sum for value in terms.values()).backward()
        maps = [p.grad for p in student.projections.parameters()]
        scores = student_features.attention.values()
        queries = [qk.query.grad for qk in scores] + [qk.key.grad for qk in scores]
        found.append([*(value.sum.detach() for value in terms.values()), *maps, *queries])
    for other in found[1:]:
        for one, clean in zip(other, found[0], strict=True):
            assert torch.equal(one, clean)


def poisoned(features, batch, poison):
    """Leaves in place of the features, with `poison` at the padded positions."""

    def leaf(tensor, mask):
        shape = mask.shape if tensor.ndim == 3 else (len(mask), 1, mask.shape[1])
        return tensor.detach().masked_fill(~mask.view(*shape, 1), poison).requires_grad_()

    masks = {Stack.ENCODER: batch.context_mask, Stack.DECODER: batch.label_mask}
    attention = {}
    for (kind, n), qk in features.attention.items():
        keys = masks[Stack.DECODER if kind is AttentionKind.DECODER_SELF else Stack.ENCODER]
        query = leaf(qk.query, masks[kind.query_stack])
        attention[kind, n] = QueryKey(query, leaf(qk.key, keys), qk.scale)
    return replace(
        features,
        encoder_output=replace(
            features.encoder_output, states=leaf(features.encoder_output.states, masks[Stack.ENCODER])
        ),
        hidden={(s, n): replace(p, states=leaf(p.states, masks[s])) for (s, n), p in features.hidden.items()},
        attention=attention,
    )
