"""A teacher's features as tables, and back: one row for each position of a stack, as the files of a cache hold them.

Of the logits either all are kept, as their factors where these are fewer numbers (the decoder's output at each
position; the output embedding once, a constant), or the log-probabilities of the k most probable tokens and that of all
others together. Their probability is spread evenly over them when logits are rebuilt, so the softmax of what is rebuilt
(temperature 1) has the teacher's own probabilities for its k tokens, and the right sum for the rest, which a divergence
compares as one (losses.top_tokens). A token that is never predicted (OutputHead.masked_id) has no part in that.
Position biases depend on a key's distance from its query alone: one number for each head and distance, a constant too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distill_engine.arithmetic.products import linear
from distill_engine.values import AttentionKind, FeatureRequest, Features, OutputHead, Projected, QueryKey, Stack

AS_KEPT = ("logits", "top_logprobs", "rest_logprob")  # whose type may be finer than the models' of a run
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_MASKED = -1e20
_NO_REST = -60.0  # log-probability of the others where rounding leaves them none; representable in fp16


class CacheError(ValueError):
    """A cache that cannot be used or made as asked; the text says why, and what to do."""


@dataclass(frozen=True)
class Column:
    """One table: `width` numbers of a type (fp32, fp16, bf16, int32) at each position of a stack."""

    name: str
    stack: str
    width: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Size of one position."""
        return self.width * (2 if self.dtype in ("fp16", "bf16") else 4)


@dataclass(frozen=True)
class Form:
    """What a cache holds of each example.

    k           tokens of which log-probabilities are kept; None: all logits
    dtype       of features (fp32, fp16, bf16); log-probabilities are fp16 where that is bf16, whose 8 bits are too few
    vocabulary  V
    masked_id   the token that is never predicted, or None
    head        whether logits are kept as their factors
    """

    k: int | None
    dtype: str
    vocabulary: int
    masked_id: int | None
    head: bool = False

    @property
    def logits_dtype(self) -> str:
        """Of log-probabilities, where only k are kept."""
        return "fp16" if self.dtype == "bf16" else self.dtype


def packed(features: Features, form: Form) -> dict[str, tuple[Stack, str, Tensor]]:
    """Column name -> its stack, type and rows [B, L, width]."""
    found: dict[str, tuple[Stack, str, Tensor]] = {}
    if form.head and features.head is not None:
        found["head"] = Stack.DECODER, form.dtype, features.head.hidden
    elif features.logits is not None:
        found |= {name: (Stack.DECODER, *rest) for name, rest in _packed_logits(features.logits, form).items()}
    states: dict[str, tuple[Stack, Tensor | Projected | None]] = {}
    states["encoder_output"] = Stack.ENCODER, features.encoder_output
    states |= {f"embedding.{stack.value}": (stack, one) for stack, one in features.embeddings.items()}
    states |= {f"hidden.{stack.value}.{n}": (stack, one) for (stack, n), one in features.hidden.items()}
    for name, (stack, one) in states.items():
        if one is not None:
            assert isinstance(one, Tensor), "a teacher's states are not projected"
            found[name] = stack, form.dtype, one
    for (kind, n), pair in features.attention.items():
        found[f"query.{kind.value}.{n}"] = kind.query_stack, form.dtype, _flat(pair.query)
        found[f"key.{kind.value}.{n}"] = key_stack(kind), form.dtype, _flat(pair.key)
    return found


def attention_facts(features: Features) -> dict[str, list[float]]:
    """Heads and scale of every attention, by `kind.layer`: what its rows alone do not say."""
    return {f"{kind.value}.{n}": [one.query.shape[1], one.scale] for (kind, n), one in features.attention.items()}


def constants(features: Features) -> dict[str, Tensor]:
    """What is the same for every example, of features of one that is padded to the longest that there can be: the
    factors of the logits, and biases [H, 2 L - 1] by distance. Raises CacheError for a bias that is no such thing."""
    found: dict[str, Tensor] = {}
    if (head := features.head) is not None:
        found["head.embedding"] = head.embedding
        found |= {} if head.bias is None else {"head.bias": head.bias}
    for (kind, n), pair in features.attention.items():
        if pair.bias is None:
            continue
        table = torch.cat([pair.bias[:, 1:, 0].flip(1), pair.bias[:, 0]], dim=1)
        if not torch.equal(_by_distance(table, *pair.bias.shape[1:]), pair.bias):
            raise CacheError(
                f"The teacher's {kind.value} attention has position biases that are not those of distances, which a "
                "cache does not hold. Set the weights of its attention terms to 0, or keep teacher.source: live."
            )
        found[f"bias.{kind.value}.{n}"] = table
    return found


def unpacked(
    tables: Mapping[str, Tensor],
    form: Form,
    attention: Mapping[str, list[float]],
    request: FeatureRequest,
    once: Mapping[str, Tensor],
) -> Features:
    """What was asked, from rows [B, L, width] of the columns that `names_of` says; `attention` as attention_facts,
    `once` as constants."""

    def pair(kind: AttentionKind, n: int) -> QueryKey:
        heads, scale = attention[f"{kind.value}.{n}"]
        query, key = (_heads(tables[f"{part}.{kind.value}.{n}"], int(heads)) for part in ("query", "key"))
        bias = once.get(f"bias.{kind.value}.{n}")
        return QueryKey(query, key, scale, bias if bias is None else _by_distance(bias, query.shape[2], key.shape[2]))

    head = None
    if form.head and (request.logits or request.head):
        head = OutputHead(tables["head"], once["head.embedding"], once.get("head.bias"), form.masked_id)
    return Features(
        logits=_unpacked_logits(tables, form, head) if request.logits else None,
        head=head if request.head else None,
        encoder_output=tables["encoder_output"] if request.encoder_output else None,
        embeddings={stack: tables[f"embedding.{stack.value}"] for stack in Stack if stack in request.embeddings},
        hidden={(s, n): tables[f"hidden.{s.value}.{n}"] for s, layers in request.hidden.items() for n in layers},
        attention={(kind, n): pair(kind, n) for kind, layers in request.attention.items() for n in layers},
        kept=_kept(tables["top_ids"].long(), form) if request.logits and form.k is not None else None,
    )


def names_of(request: FeatureRequest, form: Form) -> list[str]:
    """The columns that a request needs."""
    logits = ["head" if form.head else "logits"] if form.k is None else ["top_ids", "top_logprobs", "rest_logprob"]
    found = [
        *(logits if request.logits or request.head else []),
        *(["encoder_output"] if request.encoder_output else []),
    ]
    found += [f"embedding.{stack.value}" for stack in Stack if stack in request.embeddings]
    found += [f"hidden.{stack.value}.{n}" for stack, layers in request.hidden.items() for n in layers]
    for kind, layers in request.attention.items():
        found += [f"{part}.{kind.value}.{n}" for n in layers for part in ("query", "key")]
    return found


def key_stack(kind: AttentionKind) -> Stack:
    """Whose positions the keys of an attention are."""
    return Stack.DECODER if kind is AttentionKind.DECODER_SELF else Stack.ENCODER


def as_json(form: Form, columns: list[Column], attention: Mapping[str, list[float]]) -> dict[str, Any]:
    """What `from_json` reads."""
    return {**asdict(form), "columns": [asdict(one) for one in columns], "attention": dict(attention)}


def from_json(facts: Mapping[str, Any]) -> tuple[Form, dict[str, Column], dict[str, list[float]]]:
    """Form, columns by name, and attention_facts."""
    form = Form(facts["k"], facts["dtype"], facts["vocabulary"], facts["masked_id"], facts["head"])
    columns = [Column(**one) for one in facts["columns"]]
    return form, {one.name: one for one in columns}, dict(facts["attention"])


def _packed_logits(logits: Tensor, form: Form) -> dict[str, tuple[str, Tensor]]:
    if form.k is None:
        lowest = torch.finfo(DTYPES[form.dtype]).min
        return {"logits": (form.dtype, logits.clamp(min=max(lowest, _MASKED)))}
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)  # [B, T, V]
    values, ids = log_probabilities.topk(form.k, dim=-1)
    others = log_probabilities.scatter(-1, ids, -math.inf).logsumexp(dim=-1, keepdim=True)
    rest = others.clamp(min=_NO_REST)
    return {
        "top_ids": ("int32", ids.int()),
        "top_logprobs": (form.logits_dtype, values.clamp(min=_NO_REST)),
        "rest_logprob": (form.logits_dtype, rest),
    }


def _unpacked_logits(tables: Mapping[str, Tensor], form: Form, head: OutputHead | None) -> Tensor:
    """[B, T, V]; log-probabilities in float32 where only k were kept."""
    if head is not None:
        logits = linear(head.hidden, head.embedding, None)  # by the library that the model's own layer takes
        if head.bias is not None:
            logits.add_(head.bias)
        if head.masked_id is not None:
            logits[..., head.masked_id] = max(_MASKED, torch.finfo(logits.dtype).min)
        return logits
    if form.k is None:
        return tables["logits"]
    ids, values, rest = tables["top_ids"], tables["top_logprobs"].float(), tables["rest_logprob"].float()
    others = form.vocabulary - form.k - (form.masked_id is not None)
    logits = (rest - math.log(others)).repeat(1, 1, form.vocabulary)
    if form.masked_id is not None:
        logits[..., form.masked_id] = _MASKED
    return logits.scatter_(-1, ids.long(), values)


def _kept(ids: Tensor, form: Form) -> Tensor:
    """[B, T, k], and of a token that is never predicted as much is known."""
    return ids if form.masked_id is None else functional.pad(ids, (0, 1), value=form.masked_id)


def _flat(heads: Tensor) -> Tensor:
    """[B, H, L, E] -> [B, L, H * E]."""
    return heads.transpose(1, 2).flatten(2)


def _heads(rows: Tensor, heads: int) -> Tensor:
    """[B, L, H * E] -> [B, H, L, E]."""
    return rows.unflatten(-1, (heads, -1)).transpose(1, 2)


def _by_distance(table: Tensor, queries: int, keys: int) -> Tensor:
    """[H, 2 L - 1] -> [H, Q, K]; Q, K at most L."""
    places = torch.arange(keys, device=table.device) - torch.arange(queries, device=table.device)[:, None]
    return table[:, places + (table.shape[1] - 1) // 2]
