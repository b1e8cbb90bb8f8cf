"""The objective: which terms are asked for, what they are divided by, and what the total depends on."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.registry import names
from distill_engine.values import AttentionKind, Features, QueryKey, Stack

OF_DATA = ("task", "label_smoothing")
TERMS = names("terms")[: names("terms").index("prediction") + 1]  # ParlAI's; others are in test_further_terms.py
FAMILIES = ["blenderbot", "bart"]
DEFINITIONS = ["parlai", "invariant"]


# ---- values ------------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    st.sampled_from(FAMILIES),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    st.sampled_from(DEFINITIONS),
    st.sampled_from([1.0, 3.0]),
    st.sampled_from([None, 0.7]),
    st.integers(0, 9),
)
def test_terms_equal_a_plain_implementation(
    tiny, two, plain, family, lengths, pad_to, definition, temperature, clamp, seed
):
    contexts, labels = zip(*lengths, strict=True)
    batch = tiny.batch(family, contexts, labels, seed=seed, pad_to=pad_to)
    student, teacher = two.features(batch, seed)
    target = two.objective(definition, temperature=temperature, clamp=clamp)
    values = target.terms(student, teacher, batch)
    expected = plain.terms(
        student, teacher, batch, two.SUPERVISION, definition=definition, temperature=temperature, clamp=clamp
    )
    assert list(values) == list(TERMS)
    for term, (total, count) in expected.items():
        assert values[term].sum.item() == pytest.approx(total, rel=2e-5, abs=1e-6), term
        assert values[term].count.item() == count, term
    weighted = sum(weight * expected[term][0] / expected[term][1] for term, weight in target.term_weights.items())
    assert two.total(target, [(batch, student, teacher)]).item() == pytest.approx(weighted, rel=2e-5)


def test_only_the_encoder_term_is_not_clamped(tiny, two):
    """PARITY: clamped before the mean everywhere, except the encoder's output."""
    batch = tiny.batch(contexts=(2,), labels=(2,))
    student, teacher = two.features(batch)
    student = replace(
        student,
        encoder_output=teacher.encoder_output.detach() + 300.0,
        embeddings={stack: teacher.embeddings[stack].detach() + 300.0 for stack in Stack},
        hidden={
            (stack, n): teacher.hidden[stack, teacher_layer].detach() + 300.0
            for stack, layers in two.SUPERVISION.items()
            for n, teacher_layer in enumerate(layers)
        },
        attention={key: QueryKey(pair.query * 1e4, pair.key, pair.scale) for key, pair in student.attention.items()},
    )
    values = two.objective().terms(student, teacher, batch)
    means = {term: (value.sum / value.count).item() for term, value in values.items()}
    assert means["encoder"] == pytest.approx(90000, rel=1e-4)
    for term in ("encoder_embedding", "decoder_embedding", "encoder_hidden", "decoder_hidden"):
        assert means[term] == 65504.0, term
    for term in ("encoder_self_attention", "decoder_self_attention", "cross_attention"):
        assert 65504.0 * 0.9 < means[term] <= 65504.0, term


def test_per_layer_values_are_the_parts_of_the_mean(two, case):
    batch, student, teacher = case
    for term, value in two.objective().terms(student, teacher, batch).items():
        assert not value.per_layer.requires_grad
        assert value.sum.requires_grad and value.sum.dtype == torch.float32 and value.sum.shape == ()
        if "hidden" in term or "attention" in term:
            encoder = term.startswith("encoder")
            assert len(value.per_layer) == (2 if encoder else 3)
            assert value.per_layer.mean().item() == pytest.approx(value.sum.item(), rel=1e-6)
            assert len(set(value.per_layer.tolist())) == len(value.per_layer)
        else:
            assert len(value.per_layer) == 0


def test_each_student_layer_is_compared_with_its_own_teacher_layer(two, case):
    batch, student, teacher = case
    before = two.objective().terms(student, teacher, batch)["decoder_hidden"].per_layer
    changed = dict(teacher.hidden)
    changed[Stack.DECODER, 2] = changed[Stack.DECODER, 2] + 1.0  # mapped to student layer 1
    changed[Stack.DECODER, 1] = torch.full_like(changed[Stack.DECODER, 1], math.nan)  # mapped to none
    after = two.objective().terms(student, replace(teacher, hidden=changed), batch)["decoder_hidden"].per_layer
    assert (before == after).tolist() == [True, False, True]


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_names_and_order_of_weighted_terms(two):
    assert two.objective().term_weights == {
        "task": 1, "encoder": 2, "encoder_embedding": 4, "decoder_embedding": 4, "encoder_hidden": 64,
        "decoder_hidden": 64, "encoder_self_attention": 4, "decoder_self_attention": 4, "cross_attention": 64,
        "prediction": 64,
    }  # fmt: skip
    assert tuple(two.objective().term_weights) == TERMS
    assert not LossWeights().needs_teacher
    assert all(LossWeights(**{"task": 0, name: 1}).needs_teacher for name in two.WEIGHTS.root if name not in OF_DATA)


def test_all_weights_zero_is_refused(two):
    with pytest.raises(ValueError, match=r"losses\.weights are all 0.*losses\.weights\.task"):
        two.objective(weights=LossWeights(task=0))


OWN_FEATURES = {
    "encoder": {"encoder_output": True},
    "embedding": {"embeddings": frozenset(Stack)},
    "hidden": {"hidden": {Stack.ENCODER: (0, 1), Stack.DECODER: (0, 1, 2)}},
    "self_attention": {"attention": {AttentionKind.ENCODER_SELF: (0, 1), AttentionKind.DECODER_SELF: (0, 1, 2)}},
    "cross_attention": {"attention": {AttentionKind.CROSS: (0, 1, 2)}},
    "task": {},
    "prediction": {},
}
OF_TEACHER = {(0, 1): (0, 1), (0, 1, 2): (0, 2, 3)}  # mapped layers only, in order


@pytest.mark.parametrize("name", OWN_FEATURES)
def test_one_weight_asks_for_its_features_only_and_moves_nothing_else(two, case, name):
    batch, student, teacher = case
    target = two.objective(weights=LossWeights(**{"task": 0, name: 2.0}))
    asked = {"encoder_output": False, "embeddings": frozenset(), "hidden": {}, "attention": {}} | OWN_FEATURES[name]
    request = target.student_request()
    assert request.logits and {key: getattr(request, key) for key in asked} == asked
    request = target.teacher_request()
    for kind in ("hidden", "attention"):
        assert getattr(request, kind) == {key: OF_TEACHER[layers] for key, layers in asked[kind].items()}
    # what was not asked for need not be there
    student_features = Features(
        logits=student.logits,
        encoder_output=student.encoder_output if asked["encoder_output"] else None,
        embeddings=student.embeddings if asked["embeddings"] else {},
        hidden=student.hidden if asked["hidden"] else {},
        attention={key: pair for key, pair in student.attention.items() if key[0] in asked["attention"]},
    )
    assert list(target.terms(student_features, teacher, batch)) == list(target.term_weights)
    two.total(target, [(batch, student_features, teacher)]).backward()
    moved = [t for t in two.leaves(student) if t.grad is not None and t.grad.abs().sum() > 0]
    without_logits = {id(t) for t in two.leaves(replace(student_features, logits=None))}
    assert {id(t) for t in moved} == ({id(student.logits)} if name in ("task", "prediction") else without_logits)


def test_without_distillation_weights_no_teacher_is_needed(two, case):
    batch, student, _ = case
    target = two.objective(weights=LossWeights(task=1))
    assert list(target.terms(student, None, batch)) == ["task"]


def test_no_gradient_at_padding_or_at_teachers_logits(two, case):
    batch, student, teacher = case
    two.total(two.objective(), [(batch, student, teacher)]).backward()
    assert teacher.logits.grad is None
    masks = {Stack.ENCODER: batch.context_mask, Stack.DECODER: batch.label_mask}
    assert (student.encoder_output.grad[~batch.context_mask] == 0).all()
    assert (student.logits.grad[~batch.label_mask] == 0).all()
    for (stack, _), hidden in student.hidden.items():
        assert (hidden.grad[~masks[stack]] == 0).all() and (hidden.grad[masks[stack]] != 0).all()
    for (kind, _), pair in student.attention.items():
        queries = pair.query.grad.transpose(1, 2)  # [B, Q, H, E]
        assert (queries[~masks[kind.query_stack]] == 0).all() and (queries[masks[kind.query_stack]] != 0).all()
        if kind is not AttentionKind.DECODER_SELF:
            assert (pair.key.grad.transpose(1, 2)[~batch.context_mask] == 0).all()


def test_attention_of_other_head_counts_is_refused_only_when_weighted(tiny, two):
    batch = tiny.batch()
    student, _ = two.features(batch, heads=2)
    _, teacher = two.features(batch, heads=3)
    with pytest.raises(ValueError, match="the student has 2 heads, the teacher 3"):
        two.objective().terms(student, teacher, batch)
    without = two.objective(weights=LossWeights(two.WEIGHTS.root | {"self_attention": 0, "cross_attention": 0}))
    assert torch.isfinite(two.total(without, [(batch, student, teacher)]))


# ---- counts ----------------------------------------------------------------------------------------------------------


def test_counts_of_tokens_and_pairs(tiny, two):
    """Contexts of 5 and 3, labels of 4 and 6 tokens; Blenderbot's decoder positions are the label tokens."""
    counts = dict(zip(TERMS, two.objective().counts(tiny.batch(pad_to=(9, 9))).tolist(), strict=True))
    assert counts == {
        "task": 10, "prediction": 10, "decoder_embedding": 10, "decoder_hidden": 10,
        "encoder": 8, "encoder_embedding": 8, "encoder_hidden": 8,
        "encoder_self_attention": 5 * 5 + 3 * 3, "decoder_self_attention": 10 + 21, "cross_attention": 4 * 5 + 6 * 3,
    }  # fmt: skip


def test_barts_first_position_is_a_key_but_never_a_query(tiny, two):
    batch = tiny.batch("bart", pad_to=(9, 9))
    assert batch.labels.shape[1] == 10
    counts = dict(zip(TERMS, two.objective().counts(batch).tolist(), strict=True))
    assert counts["task"] == counts["decoder_hidden"] == 10  # T-based, not T + 1
    assert counts["cross_attention"] == 4 * 5 + 6 * 3
    assert counts["decoder_self_attention"] == (2 + 3 + 4 + 5) + (2 + 3 + 4 + 5 + 6 + 7)
    parlai = dict(zip(TERMS, two.objective("parlai").counts(batch).tolist(), strict=True))
    assert parlai["decoder_self_attention"] == parlai["cross_attention"] == 10
    assert parlai["encoder_self_attention"] == 8


def test_barts_first_key_matters_and_its_query_does_not(tiny, two):
    batch = tiny.batch("bart")
    student, teacher = two.features(batch)
    target = two.objective()
    before = two.total(target, [(batch, student, teacher)])
    pair = student.attention[AttentionKind.DECODER_SELF, 0]
    query, key = pair.query.detach().clone(), pair.key.detach().clone()
    query[:, :, 0] += 5
    attention = dict(student.attention) | {(AttentionKind.DECODER_SELF, 0): QueryKey(query, key, pair.scale)}
    assert torch.equal(before, two.total(target, [(batch, replace(student, attention=attention), teacher)]))
    key[:, :, 0] += 5
    assert not torch.equal(before, two.total(target, [(batch, replace(student, attention=attention), teacher)]))


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_without_labels_adds_nothing_and_no_nan(tiny, two, definition, name):
    """A dummy batch: what a short rank gets so that the teacher's collectives stay in step."""
    batch = tiny.batch(name)
    batch = replace(batch, labels=torch.full_like(batch.labels, -100))
    student, teacher = two.features(batch)
    encoders = dict.fromkeys(("encoder", "embedding", "hidden", "self_attention"), 0)
    decoder_only = LossWeights(two.WEIGHTS.root | encoders)
    total = two.total(two.objective(definition, decoder_only), [(batch, student, teacher)])
    total.backward()
    assert total.item() == 0
    assert all(t.grad is None or (t.grad == 0).all() for t in two.leaves(student))
    padding = replace(batch, inputs=batch.inputs.each(torch.zeros_like))
    student, teacher = two.features(padding)
    total = two.total(two.objective(definition), [(padding, student, teacher)])
    total.backward()
    assert total.item() == 0
    assert all((t.grad == 0).all() for t in two.leaves(student))


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_the_students_own_samples_have_no_task(tiny, definition):
    """In a step of gold and samples, and in one of samples alone: the gradient is that of the teacher's terms."""
    both, none = (Objective(LossWeights(task=task, prediction=2.0), dict.fromkeys(Stack, ()), definition)
                  for task in (1.0, 0.0))  # fmt: skip
    gold, own = tiny.batch(seed=1), replace(tiny.batch(seed=2), sampled=True)

    def gradient(goal, group):
        student, teacher = (tiny.features(own, dict.fromkeys(Stack, 0), vocabulary=29, seed=seed) for seed in (0, 5))
        row = goal.divisors(group, lambda tensor: tensor, 1)[-1]
        terms = goal.terms(student, teacher, own)
        (found,) = torch.autograd.grad(goal.total(terms, row), student.logits)
        return found, terms, row

    for group in ([gold, own], [own, own]):
        found, terms, row = gradient(both, group)
        torch.testing.assert_close(found, gradient(none, group)[0])
        assert found.abs().sum() > 0 and (row >= 1).all()
        assert (terms["task"].sum.item(), terms["task"].count.item()) == (0, 0)
        assert terms["prediction"].count == own.label_mask.sum()
    if definition == "invariant":  # the task's mean is over gold's labels, whatever comes beside them
        task = list(both.term_weights).index("task")
        assert both.divisors([gold, own], lambda tensor: tensor, 1)[0, task] == gold.label_mask.sum()
