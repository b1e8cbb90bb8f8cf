"""Teachers of which only the most probable tokens are known: the rest is compared as one token."""

import pytest
import torch

from distill_engine.losses.divergences.forward_kl import FORWARD_KL
from distill_engine.losses.divergences.jensen_shannon import JENSEN_SHANNON
from distill_engine.losses.divergences.reverse_kl import REVERSE_KL
from distill_engine.losses.divergences.total_variation import TOTAL_VARIATION
from distill_engine.losses.top_tokens import beside_student
from distill_engine.losses.vocabulary import Vocabulary
from distill_engine.teachers.columns import Form, packed, unpacked
from distill_engine.values import FeatureRequest, Features

VOCABULARY, KEPT, IGNORED, NEVER = 40, 6, -100, 3
FORM = Form(KEPT, "fp32", VOCABULARY, NEVER)
MEASURES = {"forward_kl": FORWARD_KL, "reverse_kl": REVERSE_KL, "jensen_shannon": JENSEN_SHANNON,
            "total_variation": TOTAL_VARIATION}  # fmt: skip


@pytest.fixture
def case():
    draw = torch.Generator().manual_seed(5)
    student, teacher = (2 * torch.randn(2, 4, VOCABULARY, generator=draw) for _ in range(2))
    for logits in (student, teacher):
        logits[..., NEVER] = -1e20
    labels = torch.randint(4, VOCABULARY, (2, 4), generator=draw)
    labels[1, 2:] = IGNORED
    return student, teacher, labels


def cached(teacher):
    rows = {name: row for name, (_, _, row) in packed(Features(logits=teacher), FORM).items()}
    return unpacked(rows, FORM, {}, FeatureRequest(), {})


def with_one_for_the_rest(logits, ids):
    """[B, T, k + 1] log-probabilities in float64, the last of everything that is not among the ids [B, T, k]."""
    log_p = logits.double().log_softmax(dim=-1)
    rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_p.gather(-1, ids), rest], dim=-1)


def spelt_out(name, log_s, log_t):
    s, t = log_s.exp(), log_t.exp()
    log_m = ((s + t) / 2).log()
    return {
        "forward_kl": t * (log_t - log_s),
        "reverse_kl": s * (log_s - log_t),
        "jensen_shannon": (t * (log_t - log_m) + s * (log_s - log_m)) / 2,
        "total_variation": (s - t).abs() / 2,
    }[name].sum(dim=-1)


@pytest.mark.parametrize("task", [True, False])
@pytest.mark.parametrize("name", MEASURES)
def test_value_and_gradient_are_those_of_the_kept_tokens_and_one_for_the_rest(case, name, task):
    logits, teacher, labels = case
    student = logits.clone()
    student[1, 2:], student[1, 3, 0] = torch.nan, torch.inf  # nothing is predicted there
    student.requires_grad_()
    vocabulary = Vocabulary(task, True, "reference", 1.0, MEASURES[name])
    sums, _ = vocabulary.sums_and_hits(Features(logits=student), cached(teacher), labels, (labels != IGNORED).sum())
    sums.divergence.backward()
    true = logits.clone().requires_grad_()
    ids = teacher.topk(KEPT, dim=-1).indices
    wanted = spelt_out(name, with_one_for_the_rest(true, ids), with_one_for_the_rest(teacher, ids))
    total = wanted[labels != IGNORED].sum()
    total.backward()
    torch.testing.assert_close(sums.divergence, total.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(student.grad, true.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_student_in_half_precision_is_compared_in_float32(case, dtype):
    logits, teacher, labels = case
    found = []
    for student in (logits.to(dtype), logits.to(dtype).float()):
        student.clamp_(min=torch.finfo(dtype).min).requires_grad_()
        sums, _ = Vocabulary(True, True, "reference", 1.0).sums_and_hits(
            Features(logits=student), cached(teacher), labels, (labels != IGNORED).sum()
        )
        sums.divergence.backward()
        found.append((sums.divergence, student.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1].to(dtype))


def test_what_is_known_stays_and_the_rest_is_the_students_in_shape_and_the_teachers_in_sum(case):
    student, teacher, _ = case
    half = cached(teacher)
    p = beside_student(half.logits, half.kept, student.half()).softmax(dim=-1)
    q, own = teacher.softmax(dim=-1), student.softmax(dim=-1)
    ids = teacher.topk(KEPT, dim=-1).indices
    torch.testing.assert_close(p.gather(-1, ids), q.gather(-1, ids))
    others = torch.ones_like(p).scatter(-1, half.kept, 0.0)
    torch.testing.assert_close((p * others).sum(-1), (q * others).sum(-1))
    shape = own * others / (own * others).sum(-1, keepdim=True)
    torch.testing.assert_close(p * others / (p * others).sum(-1, keepdim=True), shape, rtol=5e-3, atol=1e-5)
    assert not p[..., NEVER].any()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", MEASURES)
def test_a_student_that_is_its_teacher_in_what_was_kept_learns_nothing_of_the_rest(case, name, temperature):
    other, teacher, labels = case
    draw = torch.Generator().manual_seed(6)
    rest = torch.rand(2, 4, VOCABULARY, generator=draw).log()
    rest[..., NEVER] = -1e20
    ids = teacher.topk(KEPT, dim=-1).indices
    vocabulary = Vocabulary(True, True, "reference", temperature, MEASURES[name])

    def compared(logits):
        student = logits.clone().requires_grad_()
        sums, _ = vocabulary.sums_and_hits(Features(logits=student), cached(teacher), labels, (labels != IGNORED).sum())
        sums.divergence.backward()
        return float(sums.divergence.detach()), float(student.grad.abs().max())

    value, slope = compared(beside_student(teacher, ids, rest) + 3.0)
    assert abs(value) < 1e-5 and (slope < 1e-5 or name == "total_variation")  # whose slope has a jump there
    assert min(compared(other)) > 1e-2


def test_where_every_token_was_kept_the_teacher_is_whole(case):
    student, teacher, _ = case
    ids = torch.arange(VOCABULARY).expand(2, 4, VOCABULARY)
    assert torch.equal(beside_student(teacher, ids, student), teacher)
