"""The recipe's section on the student. No torch: recipes and the launcher read it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill_engine.families.shape import SIZES, Sizes
from distill_engine.losses.config import LayerMap
from distill_engine.recipe.section import Fraction, PositiveInt, Section, name_of


class StudentSection(Section):
    """The model that is trained. Sizes left out are the teacher's."""

    family: Annotated[str, name_of("families")] | None = Field(
        None, description="Architecture (`distill list families`); null: the teacher's (needed without a teacher)."
    )
    init: Literal["teacher_layers", "teacher_width", "random"] = Field(
        "teacher_layers",
        description="teacher_layers: copy embeddings and mapped layers; teacher_width: the same for a narrower "
        "student, which keeps the channels, heads and neurons that matter most (docs/narrow.md); random: from scratch.",
    )
    importance_examples: PositiveInt = Field(
        256, description="teacher_width: how many of the first training examples say what matters in the teacher."
    )
    encoder_layers: PositiveInt | None = Field(None, description="Encoder depth.")
    decoder_layers: PositiveInt | None = Field(None, description="Decoder depth.")
    width: PositiveInt | None = Field(None, description="Model width (d_model).")
    ffn_width: PositiveInt | None = Field(None, description="Inner width of the feed-forward layers.")
    heads: PositiveInt | None = Field(None, description="Attention heads, encoder and decoder alike.")
    positions: PositiveInt | None = Field(None, description="Rows of the position tables.")
    dropout: Fraction | None = Field(None, description="Dropout; null: the teacher's.")
    attention_dropout: Fraction | None = Field(None, description="Dropout of attention weights.")
    encoder_init_map: LayerMap = Field("parlai", description="Teacher layer copied into each encoder layer.")
    decoder_init_map: LayerMap = Field("parlai", description="Teacher layer copied into each decoder layer.")
    copy_final_norms: bool = Field(
        True, description="Also copy embedding and final layer norms; false is what ParlAI does."
    )
    train_position_tables: bool = Field(
        True, description="false keeps the position tables frozen, as ParlAI does with sinusoidal ones."
    )
    freeze_encoder: bool = Field(
        False,
        description="The encoder keeps what it begins with, a table that it shares with the decoder included; nothing "
        "is dropped in it, and loss terms that look at it alone are left out.",
    )
    share_encoder: bool = Field(
        False,
        description="The same, and the encoder is the teacher's whole one: it is run once for both, and a teacher "
        "that is a replica has no other copy of it.",
    )
    projections: Literal["auto", "always"] = Field(
        "auto",
        description="Linear maps from student to teacher width. auto: only where widths differ; always: also "
        "between equal widths, as ParlAI's narrow agents.",
    )
    activation_checkpointing: bool = Field(False, description="Recompute layers in the backward pass.")
    vocabulary: Literal["all", "trimmed"] = Field(
        "all",
        description="trimmed: special tokens, bytes and what the training data uses; the teacher's distribution is "
        "renormalised over them, and the tokenizer goes along with the student (docs/vocabulary.md).",
    )
    vocabulary_min_count: PositiveInt = Field(
        1, description="trimmed: keep tokens that the training data uses at least so often."
    )
    vocabulary_list: str | None = Field(
        None, description="trimmed: a file with one token a line, as the tokenizer writes it, kept instead of counting."
    )

    quantize: Literal["int8"] | None = Field(None, description="The last steps compute as int8 (docs/exports.md).")
    quantize_steps: PositiveInt | None = Field(None, description="int8: so many; null: a tenth of stop.max_steps.")

    @property
    def sizes(self) -> Sizes:
        """Those that are given."""
        return Sizes(**{name: getattr(self, name) for name in SIZES})

    @property
    def from_teacher(self) -> bool:
        """Whether it begins with the teacher's layers, whole or narrowed."""
        return self.init != "random"

    @property
    def narrowed(self) -> bool:
        """Whether it begins with parts of them."""
        return self.init == "teacher_width"

    @property
    def encoder_is_frozen(self) -> bool:
        """By either switch."""
        return self.freeze_encoder or self.share_encoder
