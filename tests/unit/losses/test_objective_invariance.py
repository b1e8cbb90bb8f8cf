"""What the loss of a step depends on: `invariant` on the examples alone, `parlai` also on padding and on the split."""

from dataclasses import replace

import pytest
import torch

from distill_engine.models.adapter import adapt
from distill_engine.registry import names
from distill_engine.values import Stack

TERMS = names("terms")[: names("terms").index("prediction") + 1]  # ParlAI's; others are in test_further_terms.py
DEFINITIONS = ["parlai", "invariant"]


def padded(tiny, batch, features, contexts: int, labels: int, filler: float):
    """The same examples with more padding, features holding `filler` there."""
    extra = {Stack.ENCODER: contexts, Stack.DECODER: labels}

    def grow(tensor, by, value):
        return torch.nn.functional.pad(tensor, (0, by), value=value)

    wider = replace(
        batch,
        inputs=batch.inputs.each(lambda tensor: grow(tensor, contexts, 0)),
        decoder_input_ids=grow(batch.decoder_input_ids, labels, 0), labels=grow(batch.labels, labels, -100),
    )  # fmt: skip

    def change(stack, tensor):
        return torch.nn.functional.pad(tensor, (0, 0, 0, extra[stack]), value=filler)

    return wider, [tiny.map_features(one, change) for one in features]


def gradients(two, total, features) -> list[torch.Tensor]:
    return torch.autograd.grad(total, two.leaves(features))


def test_invariant_does_not_depend_on_padding_neither_value_nor_gradient(tiny, two, case):
    batch, student, teacher = case
    target = two.objective()
    expected = two.total(target, [(batch, student, teacher)])
    wider, (wide_student, wide_teacher) = padded(tiny, batch, (student, teacher), 3, 5, filler=777.0)
    actual = two.total(target, [(wider, wide_student, wide_teacher)])
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(gradients(two, expected, student), gradients(two, actual, student), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_parlai_depends_on_padding_through_its_attention_terms_only(tiny, two, case):
    batch, student, teacher = case
    wider, (wide_student, wide_teacher) = padded(tiny, batch, (student, teacher), 6, 9, filler=0.0)
    before = two.objective("parlai").terms(student, teacher, batch)
    after = two.objective("parlai").terms(wide_student, wide_teacher, wider)
    shares = {
        "encoder_self_attention": 6 / 12, "cross_attention": 6 / 12,
        "decoder_self_attention": batch.labels.shape[1] / (batch.labels.shape[1] + 9),
    }  # fmt: skip
    for term in TERMS:
        assert after[term].sum.item() == pytest.approx(before[term].sum.item() * shares.get(term, 1.0), rel=1e-5)
        assert after[term].count.item() == before[term].count.item()


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_no_dependence_on_the_order_of_examples(tiny, two, case, definition):
    batch, student, teacher = case
    order = torch.tensor([2, 0, 1])

    def change(_stack, tensor):
        return tensor[order]

    expected = two.total(two.objective(definition), [(batch, student, teacher)])
    shuffled = tiny.rows(batch, order), tiny.map_features(student, change), tiny.map_features(teacher, change)
    actual = two.total(two.objective(definition), [shuffled])
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(gradients(two, expected, student), gradients(two, actual, student), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def pieces(tiny, case, cuts):
    batch, student, teacher = case

    def piece(rows):
        def change(_stack, tensor):
            return tensor[rows]

        return tiny.rows(batch, rows), tiny.map_features(student, change), tiny.map_features(teacher, change)

    return [piece(rows) for rows in cuts]


@pytest.mark.parametrize("cuts", [([0], [1], [2]), ([0, 1], [2]), ([2, 1], [0])])
def test_invariant_sums_over_micro_batches_and_ranks_to_the_whole(tiny, two, case, cuts):
    _, student, _ = case
    whole = two.total(two.objective(), [case])
    expected = gradients(two, whole, student)
    accumulated = two.total(two.objective(), pieces(tiny, case, cuts))
    # two ranks: each knows its own counts, the reduction adds the other's
    parts = pieces(tiny, case, cuts)
    all_counts = sum(two.objective().counts(batch) for batch, _, _ in parts)
    ranks = [parts[:1], parts[1:]]
    distributed = sum(two.total(two.objective(), group, lambda _own: all_counts, world_size=2) for group in ranks)
    for split in (accumulated, distributed):
        assert split.item() == pytest.approx(whole.item(), rel=1e-6)
        for one, other in zip(expected, gradients(two, split, student), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def test_invariant_reduces_once_and_adds_an_empty_micro_batch_as_nothing(tiny, two, case):
    batch, student, teacher = case
    empty = replace(batch, labels=torch.full_like(batch.labels, -100), inputs=batch.inputs.each(torch.zeros_like))
    seen = []

    def reduction(tensor):
        seen.append(tensor.clone())
        return tensor

    total = two.total(two.objective(), [case, (empty, student, teacher)], reduction)
    assert len(seen) == 1 and seen[0].dtype == torch.float64
    assert total.item() == pytest.approx(two.total(two.objective(), [case]).item(), rel=1e-6)


def test_parlai_is_a_mean_of_means_over_micro_batches_and_ranks_without_any_reduction(tiny, two, case):
    def never(_tensor):
        raise AssertionError("parlai needs no counts of other ranks")

    target = two.objective("parlai")
    parts = pieces(tiny, case, ([0], [1, 2]))
    own = [two.total(target, [part], never).item() for part in parts]
    assert two.total(target, parts, never).item() == pytest.approx(sum(own) / 2, rel=1e-6)
    assert two.total(target, parts, never, world_size=4).item() == pytest.approx(sum(own) / 8, rel=1e-6)
    assert two.total(target, [case], never).item() != pytest.approx(sum(own) / 2, rel=1e-3)


def test_padding_does_not_matter_to_real_models_either(family, tiny, two):
    """The same examples through real attention masks: nothing that padding holds reaches a loss."""
    student, teacher = (adapt(tiny.model(family, seed, decoder_layers=n)) for seed, n in ((0, 3), (1, 4)))
    target = two.objective()
    totals, slopes = [], []
    for pad_to in ((0, 0), (9, 11)):
        batch = tiny.batch(family, contexts=(5, 3), labels=(2, 6), pad_to=pad_to)
        with torch.no_grad():
            teacher_features = teacher(batch, target.teacher_request())
        total = two.total(target, [(batch, student(batch, target.student_request()), teacher_features)])
        parameters = [p for p in student.parameters() if p.requires_grad]
        slopes.append(torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True))
        totals.append(total.item())
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    for one, other in zip(*slopes, strict=True):
        assert (one - other).norm() <= 1e-4 * max(one.norm().item(), 1.0)
