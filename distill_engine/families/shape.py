"""One shape of a model for everybody who counts: recipe rules, the student's builder, the launcher's plan, interop.

Plain numbers, no torch. Counts equal those of the real modules (tests/unit/families).
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from distill_engine.data.tokens.layout import Window
from distill_engine.values import Stack

_FULL_NORM = 2  # weight and bias


class Axis(str, Enum):
    """What an axis of a linear map of a layer runs over."""

    WIDTH = "width"  # channels of the residual stream
    QUERY = "query"  # elements of queries, head after head; keys and values the same
    KEY = "key"
    VALUE = "value"
    NEURON = "neuron"  # of a feed-forward part
    HEAD = "head"
    BUCKET = "bucket"  # of distances


@dataclass(frozen=True)
class Sizes:
    """Sizes of a student; None means the teacher's."""

    encoder_layers: int | None = None
    decoder_layers: int | None = None
    width: int | None = None
    ffn_width: int | None = None
    heads: int | None = None
    positions: int | None = None
    dropout: float | None = None
    attention_dropout: float | None = None


@dataclass(frozen=True)
class Form:
    """What the parts of a family consist of, as far as they are counted.

    biases             linear maps have biases          key_biases  those to keys as well
    norm               vectors of a norm: weight and bias, or weight alone
    outer_norms        norms of each stack outside its layers
    gated              the feed-forward part begins with two products
    position_rows      rows that learnt position tables hold in front of position 0; None: no such parameters
    computed           position tables are computed and never trained
    bias_tables        which self-attentions have a table of position biases: "none", "first" or "all" layers'
    scaled_embeddings  the scaled embedding is another tensor than the bare one that losses look at
    """

    biases: bool = True
    key_biases: bool = True
    norm: int = _FULL_NORM
    outer_norms: int = 1
    gated: bool = False
    position_rows: int | None = 0
    computed: bool = False
    bias_tables: str = "none"
    scaled_embeddings: bool = False


@dataclass(frozen=True)
class Shape:
    """An encoder-decoder.

    vocab         rows of the output embedding          token_tables  rows of each token table, tied ones once
    positions     tokens that fit a stack, None: any    head_size     elements of a head, None: width / heads
    buckets       rows of a position bias table         window        what an encoder of sounds reads, None: tokens
    """

    family: str
    vocab: int
    width: int
    encoder_layers: int
    decoder_layers: int
    encoder_ffn: int
    decoder_ffn: int
    encoder_heads: int
    decoder_heads: int
    positions: int | None
    token_tables: tuple[int, ...]
    form: Form = Form()
    head_size: int | None = None
    buckets: int = 0
    window: Window | None = None

    def depth(self, stack: Stack | str) -> int:
        """Layers of a stack."""
        return self.encoder_layers if stack == Stack.ENCODER else self.decoder_layers

    def heads_of(self, stack: Stack | str) -> int:
        """Attention heads of a stack."""
        return self.encoder_heads if stack == Stack.ENCODER else self.decoder_heads

    def head_of(self, stack: Stack | str) -> int:
        """Elements of a head of a stack."""
        return self.head_size or self.width // self.heads_of(stack)

    def inner_of(self, stack: Stack | str) -> int:
        """Elements of a query of a stack, all heads together."""
        return self.heads_of(stack) * self.head_of(stack)

    def ffn_of(self, stack: Stack | str) -> int:
        """Inner width of a stack's feed-forward parts."""
        return self.encoder_ffn if stack == Stack.ENCODER else self.decoder_ffn

    @property
    def read_vocab(self) -> int:
        """Rows of the table that sources are looked up in; `vocab` is of what is written."""
        return self.token_tables[0] if self.window is None else self.vocab

    @property
    def heads(self) -> int:
        """The fewest heads of an attention: theirs are the largest."""
        return min(self.encoder_heads, self.decoder_heads)

    @property
    def ffn(self) -> int:
        """The wider of both stacks' feed-forward parts."""
        return max(self.encoder_ffn, self.decoder_ffn)

    @property
    def longest(self) -> int:
        """Tokens that fit a stack; a number beyond all texts where any do."""
        return self.positions or sys.maxsize

    @property
    def attention_width(self) -> int:
        """Elements of a query, all heads together."""
        return self.head_size * self.decoder_heads if self.head_size else self.width

    @property
    def largest_head(self) -> int:
        """Elements of the largest head."""
        return self.head_size or self.width // self.heads

    def resized(self, sizes: Sizes) -> Shape:
        """The same family's shape with other sizes; those left out stay."""
        given: dict[str, Any] = {
            "encoder_layers": sizes.encoder_layers,
            "decoder_layers": sizes.decoder_layers,
            "width": sizes.width,
            "encoder_ffn": sizes.ffn_width,
            "decoder_ffn": sizes.ffn_width,
            "encoder_heads": sizes.heads,
            "decoder_heads": sizes.heads,
            "positions": sizes.positions if self.positions is not None else None,
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @property
    def encoder_layer(self) -> int:
        """Parameters of one encoder layer; of position biases none."""
        return _elements(self._layer(Stack.ENCODER))

    @property
    def decoder_layer(self) -> int:
        """Parameters of one decoder layer; of position biases none."""
        return _elements(self._layer(Stack.DECODER))

    @property
    def embedding(self) -> int:
        """Parameters of the output embedding."""
        return self.vocab * self.width

    def position_table(self, stack: Stack | str) -> int:
        """Parameters of a stack's position table."""
        if self.window is not None and stack == Stack.ENCODER:
            return self.window.positions * self.width
        if self.form.position_rows is None or self.positions is None:
            return 0
        return (self.positions + self.form.position_rows) * self.width

    def computes(self, stack: Stack | str) -> bool:
        """Whether a stack's positions are computed."""
        return self.form.computed or (self.window is not None and stack == Stack.ENCODER)

    @property
    def encoder(self) -> int:
        """Parameters of what an encoder reads: a token table that both stacks have is among them."""
        front = self.token_tables[0] * self.width if self.window is None else _elements(self._convolutions())
        norms = self.form.outer_norms * self.form.norm * self.width
        biased = {"none": 0, "first": 1, "all": self.encoder_layers}[self.form.bias_tables]
        layers = self.encoder_layers * self.encoder_layer + biased * self.buckets * self.encoder_heads
        return front + norms + self.position_table(Stack.ENCODER) + layers

    @property
    def parameters(self) -> int:
        """All of them."""
        return _elements(self.tensors)

    @property
    def tensors(self) -> Counter[int]:
        """Elements of a tensor -> how many tensors have so many, all parameters together."""
        found: Counter[int] = Counter(rows * self.width for rows in self.token_tables)
        if self.window is not None:
            found += self._convolutions()
        found[self.width] += 2 * self.form.outer_norms * self.form.norm
        for stack in Stack:
            if table := self.position_table(stack):
                found[table] += 1
            biased = {"none": 0, "first": 1, "all": self.depth(stack)}[self.form.bias_tables]
            found += Counter({self.buckets * self.heads_of(stack): biased})
            for size, count in self._layer(stack).items():
                found[size] += count * self.depth(stack)
        return found

    def _convolutions(self) -> Counter[int]:
        """Tensors of the two that make positions of frames, both of kernel size 3."""
        assert self.window is not None
        return Counter([3 * self.window.channels * self.width, 3 * self.width**2, self.width, self.width])

    def _layer(self, stack: Stack) -> Counter[int]:
        """Tensors of one layer, position biases left out."""
        attentions = 1 if stack is Stack.ENCODER else 2
        inner = self.inner_of(stack)
        wide, first = self.ffn_of(stack), 2 if self.form.gated else 1
        found: Counter[int] = Counter()
        found[self.width * inner] += 4 * attentions
        found[self.width * wide] += first + 1
        found[self.width] += (attentions + 1) * self.form.norm
        if self.form.biases:
            found[inner] += (3 if self.form.key_biases else 2) * attentions
            found[self.width] += attentions + 1
            found[wide] += first
        return found


SIZES = tuple(field.name for field in fields(Sizes))


def _elements(tensors: Counter[int]) -> int:
    return sum(size * count for size, count in tensors.items())
