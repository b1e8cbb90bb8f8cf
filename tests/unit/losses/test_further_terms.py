"""Terms that ParlAI does not have: against plain float64 formulas, with anything at padding, and at weight 0."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from distill_engine.losses.config import LossWeights
from distill_engine.losses.kernels.relations import relation_heads
from distill_engine.losses.objective import Objective
from distill_engine.values import AttentionKind, OutputHead, Projected, QueryKey, Stack

KINDS = {Stack.ENCODER: AttentionKind.ENCODER_SELF, Stack.DECODER: AttentionKind.DECODER_SELF}


def objective(two, **weights):
    return Objective(LossWeights(**{"task": 0.0, **weights}), two.SUPERVISION)


@pytest.fixture
def pair(tiny, two):
    """A ragged batch; student and teacher in float64-exact float32."""
    batch = tiny.batch("bart", contexts=(5, 3, 1), labels=(4, 6, 2), pad_to=(6, 8))
    return (batch, *two.features(batch))


@pytest.mark.parametrize("masked_id", [None, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_task_and_label_smoothing_are_smoothed_cross_entropy(two, pair, masked_id, bias):
    batch, student, _ = pair
    draw = torch.Generator().manual_seed(3)
    batch = replace(batch, labels=batch.labels.masked_fill(batch.labels == 2, 3))
    vocabulary, (rows, length) = student.logits.shape[-1], batch.labels.shape
    head = OutputHead(
        torch.randn(rows, length, 8, generator=draw).requires_grad_(),
        torch.randn(vocabulary, 8, generator=draw).requires_grad_(),
        torch.randn(vocabulary, generator=draw).requires_grad_() if bias else None,
        masked_id,
    )
    trained = [one for one in (head.hidden, head.embedding, head.bias) if one is not None]

    def logits(parts):
        whole = parts[0] @ parts[1].t() + (parts[2] if bias else 0.0)
        return whole if masked_id is None else whole.index_fill(-1, torch.tensor([masked_id]), -1e20)

    goal = objective(two, task=0.9, label_smoothing=0.1)
    assert goal.student_request().head and list(goal.term_weights) == ["task", "label_smoothing"]
    spoilt = replace(head, hidden=head.hidden.masked_fill(~batch.label_mask[..., None], torch.nan))
    student_features = replace(student, logits=logits(trained), head=spoilt)
    terms = goal.terms(student_features, None, batch)
    total = goal.total(terms, goal.divisors([batch], lambda one: one, 1)[0])
    exact = [one.detach().double().requires_grad_() for one in trained]
    allowed = [number for number in range(vocabulary) if number != masked_id]
    kept = logits(exact)[batch.label_mask][:, allowed]
    index = torch.tensor([allowed.index(label) for label in batch.labels[batch.label_mask].tolist()])
    expected = functional.cross_entropy(kept, index, label_smoothing=0.1)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(torch.autograd.grad(total, trained), torch.autograd.grad(expected, exact), strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-6)


def spoil(tensor, mask):
    """Nan where nothing counts; [B, L, D] or [B, H, L, E]."""
    return tensor.masked_fill(~(mask[..., None] if tensor.ndim == 3 else mask[:, None, :, None]), torch.nan)


@pytest.mark.parametrize("projected", [False, True])
def test_cosine(two, pair, projected):
    batch, student, teacher = pair
    draw = torch.Generator().manual_seed(5)
    own, exact, trained = {}, [], []
    for (stack, layer), states in student.hidden.items():
        weights = [torch.randn(states.shape[-1], 6, generator=draw), torch.randn(states.shape[-1], generator=draw)]
        parts = [torch.randn(*states.shape[:2], 6, generator=draw), *weights] if projected else [states.detach()]
        parts = [part.clone().requires_grad_() for part in parts]
        first = spoil(parts[0], batch.mask_of(stack))
        own[stack, layer] = Projected(first, *parts[1:]) if projected else first
        trained += parts
        exact.append([part.detach().double().requires_grad_() for part in parts])
    right = {key: spoil(states, batch.mask_of(key[0])) for key, states in teacher.hidden.items()}
    both = replace(student, hidden=own), replace(teacher, hidden=right)
    values = objective(two, hidden_cosine=1.0).terms(*both, batch)
    assert list(values) == ["encoder_hidden_cosine", "decoder_hidden_cosine"]
    expected = []
    for parts, (stack, layer) in zip(exact, student.hidden, strict=True):
        mask = batch.mask_of(stack)
        left = functional.linear(parts[0][mask], *parts[1:]) if projected else parts[0][mask]
        teacher_states = teacher.hidden[stack, two.SUPERVISION[stack][layer]][mask].double()
        expected.append((1 - functional.cosine_similarity(left, teacher_states, dim=-1)).sum())
    for value, part in zip(values.values(), (expected[:2], expected[2:]), strict=True):
        assert torch.allclose(value.per_layer.double(), torch.stack(part).detach(), rtol=1e-5)
    found = torch.autograd.grad(sum(value.sum for value in values.values()), trained)
    leaves = [part for parts in exact for part in parts]
    wanted = torch.autograd.grad(sum(expected[:2]) / 2 + sum(expected[2:]) / 3, leaves)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("heads", "size"), [(2, 4), (3, 4), (1, 6)])
def test_relations_between_models_of_other_heads(two, pair, heads, size):
    """Student of `heads` heads, teacher of 4 of size 3; relation heads: 4, 4, 3."""
    batch, student, teacher = pair
    draw = torch.Generator().manual_seed(8)

    def model(shape, depths):
        return {
            (kind, layer): QueryKey(
                *(torch.randn(3, shape[0], batch.mask_of(stack).shape[1], shape[1], generator=draw) for _ in range(2)),
                shape[1] ** -0.5,
            )
            for stack, kind in KINDS.items() for layer in range(depths[stack])
        }  # fmt: skip

    own = model((heads, size), {Stack.ENCODER: 2, Stack.DECODER: 3})
    right = model((4, 3), {Stack.ENCODER: 2, Stack.DECODER: 4})
    trained = [side.requires_grad_() for one in own.values() for side in (one.query, one.key)]

    def scored(pairs):
        return {
            (kind, layer): QueryKey(
                *(spoil(side, batch.mask_of(kind.query_stack)) for side in (one.query, one.key)), one.scale
            )
            for (kind, layer), one in pairs.items()
        }

    goal = objective(two, self_relations=1.0)
    assert not goal.student_request().hidden
    values = goal.terms(replace(student, attention=scored(own)), replace(teacher, attention=scored(right)), batch)
    relations = relation_heads(trained[0], right[AttentionKind.ENCODER_SELF, 0].query)
    assert relations == {(2, 4): 4, (3, 4): 4, (1, 6): 3}[heads, size]
    exact = {id(one): one.detach().double().requires_grad_() for one in trained}

    def matrix(vectors, example, tokens, head, causal):
        rows = vectors[example].transpose(0, 1).flatten(1)[tokens].chunk(relations, dim=1)[head]
        products = rows @ rows.t() / rows.shape[1] ** 0.5
        hidden = torch.ones_like(products).triu(1).bool() if causal else torch.zeros_like(products).bool()
        return products.masked_fill(hidden, -1e9).log_softmax(-1)

    expected = []
    for stack, kind in KINDS.items():
        layers = []
        for layer, teacher_layer in enumerate(two.SUPERVISION[stack]):
            total = torch.zeros((), dtype=torch.float64)
            for side in ("query", "key"):
                left = exact[id(getattr(own[kind, layer], side))]
                sides = left, getattr(right[kind, teacher_layer], side).double()
                for example, tokens in enumerate(batch.mask_of(stack)):
                    for head in range(relations):
                        s, t = (matrix(one, example, tokens, head, stack is Stack.DECODER) for one in sides)
                        total = total + (t.exp() * (t - s)).sum() / relations
            layers.append(total)
        expected.append(torch.stack(layers))
    for value, layers in zip(values.values(), expected, strict=True):
        assert torch.allclose(value.per_layer.double(), layers.detach(), rtol=1e-4)
    found = torch.autograd.grad(sum(value.sum for value in values.values()), trained)
    wanted = torch.autograd.grad(sum(layers.mean() for layers in expected), list(exact.values()))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-6)


def test_equal_models_are_no_distance_apart(two, pair):
    batch, student, _ = pair
    teacher = replace(
        student,
        hidden={(stack, n): student.hidden[stack, 0] * 3 for stack in Stack for n in range(4)},
        attention={(kind, n): student.attention[kind, 0] for kind in KINDS.values() for n in range(4)},
    )
    same = replace(
        student,
        hidden={key: student.hidden[key[0], 0] for key in student.hidden},
        attention={key: student.attention[key[0], 0] for key in student.attention},
    )
    for value in objective(two, hidden_cosine=1.0, self_relations=1.0).terms(same, teacher, batch).values():
        assert value.sum.abs() < 1e-5


def test_weight_0_asks_for_nothing_and_computes_nothing(two, pair):
    """Neither captured nor computed: the same requests and the same terms as before these existed."""
    batch, student, teacher = pair
    plain, named = (Objective(LossWeights(**extra), two.SUPERVISION) for extra in (
        {}, {"label_smoothing": 0, "hidden_cosine": 0, "self_relations": 0}))  # fmt: skip
    for goal in (plain, named):
        assert list(goal.terms(student, teacher, batch)) == ["task"]
        request = goal.student_request()
        assert not request.head and not request.hidden and not request.attention


def test_a_teacher_is_not_asked_for_what_only_the_student_is_judged_by():
    weights = LossWeights({"task": 0.9, "label_smoothing": 0.1, "prediction": 1.0})
    assert weights.request({}).head and not weights.request({}, of_teacher=True).head
