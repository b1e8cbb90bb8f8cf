"""The shared words: small values that flow between the parts of the engine.

Axis letters, used in every shape comment of this package:

    B  examples of a micro-batch         H  attention heads
    S  context (encoder) positions       Q  query positions of an attention
    T  label (decoder) positions         K  key positions of an attention
    L  positions of either stack         E  size of one head
    D  model width                       V  vocabulary
    M  mapped layer pairs of one term
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # recipes and the launcher read these words on machines without torch
    import torch
    from torch import Tensor

IGNORED_LABEL = -100


class Stack(str, Enum):
    """One of the two halves of a sequence-to-sequence model."""

    ENCODER = "encoder"
    DECODER = "decoder"


class AttentionKind(str, Enum):
    """The three attentions of a sequence-to-sequence model."""

    ENCODER_SELF = "encoder_self"
    DECODER_SELF = "decoder_self"
    CROSS = "cross"

    @property
    def query_stack(self) -> Stack:
        """The stack whose tokens ask, and whose layers are counted."""
        return Stack.ENCODER if self is AttentionKind.ENCODER_SELF else Stack.DECODER


def stacked(parts: Sequence[Tensor], filling: int) -> Tensor:
    """[sum of B, L, ...]: the rows of all parts [B, L, ...], right-padded to the longest L."""
    from torch import cat
    from torch.nn.functional import pad

    longest = max(part.shape[1] for part in parts)
    behind = (0, 0) * (parts[0].ndim - 2)
    return cat([
        part if part.shape[1] == longest else pad(part, (*behind, 0, longest - part.shape[1]), value=filling)
        for part in parts
    ])  # fmt: skip


_Same = TypeVar("_Same", bound="_EncoderInputs")


class _EncoderInputs:
    """What all kinds of inputs have: dataclasses of tensors whose rows are examples, `attention_mask` [B, S] among
    them, 1 at encoder positions that count."""

    attention_mask: Tensor

    @property
    def mask(self) -> Tensor:
        """[B, S] bool: encoder positions that count."""
        return self.attention_mask != 0

    @property
    def length(self) -> int:
        """S."""
        return self.attention_mask.shape[1]

    def each(self: _Same, change: Callable[[Tensor], Tensor]) -> _Same:
        """The same with every tensor changed."""
        return type(self)(*(change(tensor) for tensor in self._tensors()))

    def beside(self: _Same, others: Iterable[_Same]) -> _Same:
        """The rows of all, as long as the longest; added positions hold zeros, which nothing that counts looks at."""
        columns = zip(*(one._tensors() for one in (self, *others)), strict=True)
        return type(self)(*(stacked(column, 0) for column in columns))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, one.name) for one in fields(self)]  # type: ignore[arg-type]  # each kind is a dataclass


@dataclass(frozen=True)
class Tokens(_EncoderInputs):
    """What the encoder of a text model reads, right-padded.

    input_ids       [B, S] int64
    attention_mask  [B, S] int64, 1 at real context tokens
    """

    input_ids: Tensor
    attention_mask: Tensor

    @property
    def keywords(self) -> dict[str, Tensor]:
        """As a transformers model takes them."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


@dataclass(frozen=True)
class Audio(_EncoderInputs):
    """What the encoder of a speech model reads: features of a window of sound, padded with silence; every window is as
    long.

    input_features  [B, C, F] float: C mel bins of F frames, as the family's feature extractor makes them
    attention_mask  [B, S] int64, 1 at encoder positions that count (S is fewer than F: the encoder's first layers
                    stride over the frames)
    """

    input_features: Tensor
    attention_mask: Tensor

    @property
    def keywords(self) -> dict[str, Tensor]:
        """As a transformers model takes them: the features alone, speech encoders attend to silence too."""
        return {"input_features": self.input_features}


@dataclass(frozen=True)
class Encoded(_EncoderInputs):
    """What an encoder has made of its inputs already, where student and teacher share it.

    states          [B, S, D]
    attention_mask  [B, S] int64, 1 at encoder positions that count
    """

    states: Tensor
    attention_mask: Tensor

    @property
    def keywords(self) -> dict[str, Tensor]:
        """An encoder is not run again."""
        raise TypeError("inputs that are encoded are read by decoders alone (models.adapter)")


Inputs = Tokens | Audio | Encoded


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank, right-padded.

    inputs            what the encoder reads
    decoder_input_ids [B, T] int64, exactly what the decoder reads
    labels            [B, T] int64, aligned with decoder_input_ids, -100 where nothing is predicted
    example_ids       [B] int64, number of the example within its dataset; -1: a filler that is no example
    dataset_ids       [B] int64, index into the run's list of datasets (metrics per dataset)
    sampled           the labels are the student's own samples: only the teacher says how good they are, and terms that
                      compare with the data (Term.distils is False) are 0 and count 0
    """

    inputs: Inputs
    decoder_input_ids: Tensor
    labels: Tensor
    example_ids: Tensor
    dataset_ids: Tensor
    sampled: bool = False

    @classmethod
    def of(cls, inputs: Inputs, decoder_input_ids: Tensor, labels: Tensor) -> Batch:
        """A batch outside of any dataset: its rows are examples 0, 1, ... of dataset 0."""
        import torch

        rows = torch.arange(len(labels))
        return cls(inputs, decoder_input_ids, labels, rows, torch.zeros_like(rows))

    def __len__(self) -> int:
        """B."""
        return len(self.labels)

    @cached_property
    def label_mask(self) -> Tensor:
        """[B, T] bool: positions that are predicted."""
        return self.labels != IGNORED_LABEL

    @cached_property
    def context_mask(self) -> Tensor:
        """[B, S] bool: real context tokens."""
        return self.inputs.mask

    def mask_of(self, stack: Stack) -> Tensor:
        """[B, L] bool: positions of a stack that count."""
        return self.context_mask if stack is Stack.ENCODER else self.label_mask

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device (non-blocking)."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same with every tensor changed, those of `inputs` as well."""
        tensors = ("decoder_input_ids", "labels", "example_ids", "dataset_ids")
        changed: dict[str, Any] = {one: change(getattr(self, one)) for one in tensors}
        return replace(self, inputs=self.inputs.each(change), **changed)


@dataclass(frozen=True)
class FeatureRequest:
    """What one model must give in one forward pass; everything else is neither kept nor computed.

    Layer numbers are 0-based and belong to the model that is asked. `head` asks for the factors of the logits instead
    of, or beside, the logits themselves.
    """

    logits: bool = True
    head: bool = False
    encoder_output: bool = False
    embeddings: frozenset[Stack] = frozenset()
    hidden: Mapping[Stack, tuple[int, ...]] = field(default_factory=dict)
    attention: Mapping[AttentionKind, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class QueryKey:
    """The two factors of pre-softmax attention scores `scale * query @ key^T`.

    query [B, H, Q, E], key [B, H, K, E]; `scale` is the model's own (normally 1 / sqrt(E)).
    bias  [H, Q, K] position bias that is added to the scores, or None
    """

    query: Tensor
    key: Tensor
    scale: float
    bias: Tensor | None = None


@dataclass(frozen=True)
class Projected:
    """Hidden states and the linear map to another width; the product is not formed, a kernel may never need it whole.

    states [B, L, Ds], weight [D, Ds], bias [D]
    """

    states: Tensor
    weight: Tensor
    bias: Tensor

    def tensor(self) -> Tensor:
        """[B, L, D]: the product."""
        from torch.nn import functional

        return functional.linear(self.states, self.weight, self.bias)


@dataclass(frozen=True)
class OutputHead:
    """The factors of a model's logits `hidden @ embedding^T + bias`; a kernel may never need the logits whole.

    hidden    [B, T, D], the decoder's output, times the output scale of a family that has one
    embedding [V, D], the token embedding or a table of its own
    bias      [V], or None where it is all zeros
    masked_id the token that is never predicted (its logit is set to "minus infinity"), or None
    """

    hidden: Tensor
    embedding: Tensor
    bias: Tensor | None
    masked_id: int | None


@dataclass(frozen=True)
class Features:
    """What a model gives for one batch, keyed by the model's own layer numbers.

    logits         [B, T, V], or None when not asked
    kept           [B, T, k] int64: the tokens whose logits are the model's own, where only some are known; the others
                   share the rest of the probability evenly
    head           the logits' factors, or None when not asked
    encoder_output [B, S, D]
    embeddings     stack -> [B, L, D], token embedding only: unscaled, without positions or norm
    hidden         (stack, layer) -> [B, L, D], output of the whole layer (residual stream)
    attention      (kind, layer) -> QueryKey

    A student's encoder output, embeddings and hidden states are Projected where its width is not the teacher's.
    """

    logits: Tensor | None = None
    head: OutputHead | None = None
    encoder_output: Tensor | Projected | None = None
    embeddings: Mapping[Stack, Tensor | Projected] = field(default_factory=dict)
    hidden: Mapping[tuple[Stack, int], Tensor | Projected] = field(default_factory=dict)
    attention: Mapping[tuple[AttentionKind, int], QueryKey] = field(default_factory=dict)
    kept: Tensor | None = None

    @property
    def vocabulary(self) -> int:
        """V, where logits or their factors were asked for."""
        if self.logits is not None:
            return self.logits.shape[-1]
        assert self.head is not None, "neither logits nor head were asked for"
        return len(self.head.embedding)
