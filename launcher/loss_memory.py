"""Bytes that captured features and losses need on each GPU, by the kernels that compute them (docs/kernels.md).

Held means: from the forward pass of a term until its own backward pass. The backward passes of all terms run before
those of the student's layers, so the gradients of all compared features exist together; what a term held is gone then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from distill_engine.families.shape import Shape
from distill_engine.losses.config import LossesSection
from distill_engine.losses.terms.protocol import Operand
from distill_engine.recipe.cache_rules import holds_head, kept_tokens
from distill_engine.values import AttentionKind, FeatureRequest, Stack
from launcher.job import FULL, Job, has_projections, kernel, layers_of

# Of distill_engine.losses, which a login node without torch cannot import; a test keeps them equal.
LOGIT_BLOCK_BYTES = 48 * 2**20  # logits of both models in fused prediction
SLOPE_ELEMENTS = 2**21  # of a projection's slopes in the Triton kernels
LIBRARY_DEPTH = 1886  # student's width from which half-precision projections are the library's products


@dataclass(frozen=True)
class Attention:
    """Attentions of one kind that are compared: so many layers, with queries and keys at so many positions each."""

    layers: int
    queries: int
    keys: int
    scores: int  # of one head, all examples


def attentions(job: Job, operand: Operand = "scores") -> Iterator[Attention]:
    """Those of terms with a weight."""
    return _attentions(job, _needs(job, operand))


def _attentions(job: Job, requests: Iterable[FeatureRequest]) -> Iterator[Attention]:
    for asked in requests:
        for kind, layers in asked.attention.items():
            queries, keys = job.positions(kind.query_stack), job.positions(key_stack(kind))
            yield Attention(len(layers), queries, keys, queries * _length(job, key_stack(kind)))


def key_stack(kind: AttentionKind) -> Stack:
    """Whose positions the keys of an attention are."""
    return Stack.DECODER if kind is AttentionKind.DECODER_SELF else Stack.ENCODER


def _needs(job: Job, operand: Operand) -> list[FeatureRequest]:
    """What each term of this operand looks at in the student."""
    layers = layers_of(job.student)
    return [term.needs(layers) for term in job.recipe.losses.weights.terms if term.operand == operand]


def compared_tokens(job: Job) -> list[int]:
    """Positions of every comparison of hidden vectors: encoder output, embeddings, mapped layers."""
    found = []
    for asked in _needs(job, "vectors"):
        found += [job.contexts] if asked.encoder_output else []
        found += [job.positions(stack) for stack in sorted(asked.embeddings)]
        found += [job.positions(stack) for stack, layers in asked.hidden.items() for _ in layers]
    return found


def captured(job: Job) -> float:
    """The teacher's features of mapped layers, of all micro-batches that are held; the student's are activations.

    A teacher layer mapped to several student layers is kept once.
    """
    if job.compared is None:
        return 0.0
    width = job.compared.width
    asked = job.recipe.losses.weights.request(different_layers(job))
    tokens = job.contexts if asked.encoder_output else 0
    tokens += sum(job.positions(stack) for stack in asked.embeddings)
    tokens += sum(job.positions(stack) * len(layers) for stack, layers in asked.hidden.items())
    rows = 0
    for kind, layers in asked.attention.items():
        rows += (job.positions(kind.query_stack) + job.positions(key_stack(kind))) * len(layers)
    # a head's factor, or the logits themselves: they are asked for even where no term needs them (agreement)
    logits = job.labels * (job.compared.vocab if _whole_logits(job) else width)
    held = (width * tokens + job.compared.attention_width * rows + logits) * job.word * job.held_batches
    held += position_biases(job, job.compared, asked) * job.word
    if job.cached and not holds_head(job.recipe):  # as they are kept, in 32 bits at most, or rebuilt in 32 bits
        copies = 2 if _of_some_tokens(job) else 1  # then once more, beside the student's (losses/top_tokens.py)
        held += job.labels * job.compared.vocab * (copies * FULL - job.word)
    # of several: the mean in 32 bits, made of two further such tables and one teacher's logits (teachers/mixture.py)
    return float(held + (job.labels * job.compared.vocab * (3 * FULL - job.word) if len(job.all_loaded) > 1 else 0))


def _of_some_tokens(job: Job) -> bool:
    """Whether a cache keeps some logits; one that is not there yet will, unless it is asked for all."""
    return holds_head(job.recipe) is None or kept_tokens(job.recipe) is not None


def different_layers(job: Job) -> dict[Stack, tuple[int, ...]]:
    """As many numbers as different teacher layers are compared, of each stack."""
    assert job.compared is not None
    losses, student, teacher = job.recipe.losses, job.student, job.compared
    encoder = _different(losses.encoder_layer_map, student.encoder_layers, teacher.encoder_layers)
    decoder = _different(losses.decoder_layer_map, student.decoder_layers, teacher.decoder_layers)
    return {Stack.ENCODER: tuple(range(encoder)), Stack.DECODER: tuple(range(decoder))}


def position_biases(job: Job, shape: Shape, asked: FeatureRequest) -> int:
    """Elements of the [H, Q, K] biases beside captured scores: one of a stack, or of each layer that has a table.

    The same for all examples, and so for all micro-batches of a window, which are one batch.
    """
    found = 0
    for kind, layers in asked.attention.items():
        if kind is AttentionKind.CROSS or shape.form.bias_tables == "none":
            continue  # cross-attention has none
        tables = min(len(layers), 1) if shape.form.bias_tables == "first" else len(layers)
        found += tables * shape.heads_of(kind.query_stack) * _length(job, kind.query_stack) ** 2
    return found


def _length(job: Job, stack: Stack) -> int:
    return job.context_length if stack is Stack.ENCODER else job.recipe.data.label_tokens


def _different(chosen: str | list[int], student_layers: int, teacher_layers: int) -> int:
    return len(set(chosen)) if isinstance(chosen, list) else min(student_layers, teacher_layers)


@dataclass(frozen=True)
class _Group:
    """Bytes of a group of terms: held, of the gradients that it hands on, and needed only while it is computed."""

    held: float = 0.0
    gradients: float = 0.0
    passing: float = 0.0


def losses(job: Job) -> float:
    """Everything that the terms add, at the largest moment: at the end of a group's forward pass, or in the backward
    pass of the vocabulary, which comes first in the forward pass and so last in the backward pass."""
    vocabulary, groups = _vocabulary(job), list[_Group]()
    if job.compared is not None:
        groups = [of(job, job.compared) for of in (_hidden, _attention, _relations)]
    held, moments = vocabulary.held, [vocabulary.held + vocabulary.passing]
    for group in groups:
        held += group.held
        moments.append(held + group.passing)
    moments += [vocabulary.held + vocabulary.passing + sum(group.gradients for group in groups)]
    return float(max(moments) + student_logits(job))


def student_logits(job: Job) -> float:
    """The student's, where they are made whole."""
    return float(job.labels * job.student.vocab * job.word) if _whole_logits(job) else 0.0


def _whole_logits(job: Job) -> bool:
    return kernel(job, "prediction") == "reference" or job.asked.logits


def _vocabulary(job: Job) -> _Group:
    """Terms over the vocabulary. Whole: softmaxes in 32 bits; in blocks: one block of both models' logits."""
    tokens, vocab, losses = job.labels, job.student.vocab, job.recipe.losses
    asking = [term for term in losses.weights.terms if term.distils and term.operand == "logits"]
    distils = job.compared is not None and bool(asking)
    logits = tokens * vocab
    of_hidden = tokens * job.student.width
    if kernel(job, "prediction") == "reference":
        if distils and _needs_a_pass(losses):  # log-probabilities of both, values, slopes; the last are held
            return _Group(logits * FULL * 2, 0.0, logits * FULL * 5)
        softmaxes = 2 if distils else 1
        tempered = 3 if distils and losses.temperature != 1.0 else 0
        rounded = job.word if job.word < FULL else 0
        return _Group(logits * FULL * (softmaxes + tempered), 0.0, logits * (FULL + rounded))
    models = 1 if job.compared is None else 2
    block = min(models * logits * job.word, LOGIT_BLOCK_BYTES)
    in_torch = kernel(job, "prediction") == "chunked" or not losses.measure.twin
    slopes = block / models / job.word * FULL if distils and _needs_a_pass(losses) and in_torch else 0.0
    return _Group(block, of_hidden * job.word, of_hidden * FULL + slopes)


def _needs_a_pass(losses: LossesSection) -> bool:
    """Whether the divergence is another than the kernels' own."""
    return losses.measure is not LossesSection().measure


def _hidden(job: Job, teacher: Shape) -> _Group:
    """Encoder output, embeddings, hidden states. Whole: the difference in 32 bits."""
    tokens, width, own = compared_tokens(job), teacher.width, job.student.width
    if not tokens:
        return _Group()
    projected = has_projections(job.recipe, job.student, teacher)
    gradients = sum(tokens) * own * job.word
    kind = kernel(job, "hidden")
    if kind == "reference":
        clean = own * job.word if projected else 0
        held = sum(tokens) * (width * FULL + clean)
        return _Group(held, gradients, max(tokens) * width * (FULL + job.word))
    matrix = width * own * FULL if projected else 0
    if kind == "chunked":
        held = (sum(tokens) * own * FULL + len(tokens) * matrix) if projected else 0
        return _Group(held, gradients, matrix)
    slopes = min(SLOPE_ELEMENTS, max(tokens) * width) * job.word
    if not projected:
        return _Group(0.0, gradients)
    if job.word < FULL and own >= LIBRARY_DEPTH:
        return _Group(sum(tokens) * width * FULL, gradients, max(tokens) * (width + own) * job.word)
    return _Group(0.0, gradients, slopes + matrix)


def _attention(job: Job, teacher: Shape) -> _Group:
    """Attention scores. Whole: slopes in 32 bits, with 32-bit copies of the student's queries and keys."""
    kinds = list(attentions(job))
    rows = sum(one.layers * (one.queries + one.keys) for one in kinds) * job.student.attention_width
    offsets = sum(_offsets(job, teacher, asked) for asked in _needs(job, "scores")) * FULL
    kind = kernel(job, "attention")
    if kind == "reference":
        held = rows + sum(one.layers * one.scores for one in kinds) * job.student.heads
        widths = job.student.attention_width + teacher.attention_width
        passing = max((one.scores * teacher.heads + (one.queries + one.keys) * widths for one in kinds), default=0)
        return _Group(held * FULL + offsets, rows * job.word, passing * FULL)
    return _Group((rows * FULL if kind == "chunked" else 0.0) + 2 * offsets, rows * job.word)


def _offsets(job: Job, teacher: Shape, asked: FeatureRequest) -> int:
    """Elements of the differences between both models' position biases, one of each layer pair; fused kernels hold
    their gradients, too, the reference gives them when its turn comes."""
    if job.student.form.bias_tables == teacher.form.bias_tables == "none":
        return 0
    return sum(
        len(layers) * teacher.heads_of(kind.query_stack) * _length(job, kind.query_stack) ** 2
        for kind, layers in asked.attention.items()
        if kind is not AttentionKind.CROSS
    )


def _relations(job: Job, teacher: Shape) -> _Group:
    """Matrices of one layer's relation heads, whole and in 32 bits; gradients of queries and keys are held."""
    kinds = list(attentions(job, "relations"))
    rows = sum(one.layers * (one.queries + one.keys) for one in kinds) * job.student.attention_width
    heads = max(job.student.heads, teacher.heads)
    return _Group(rows * FULL, rows * job.word, max((4 * one.scores * heads for one in kinds), default=0) * FULL)


def captured_of_student(job: Job) -> float:
    """Queries and keys of the student that losses look at: recomputed layers keep them all the same."""
    asked = job.recipe.losses.weights.request(layers_of(job.student))
    kept = sum(one.layers * (one.queries + one.keys) for one in _attentions(job, [asked]))
    return float(kept * job.student.attention_width * job.word)
