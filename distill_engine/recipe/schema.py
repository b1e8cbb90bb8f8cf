"""A recipe: everything that decides what is learnt. One frozen model per section, a sentence per field.

How it runs (ZeRO stage, precision, communication) belongs to the DeepSpeed JSON, not here.
Units are in the names. Unknown keys are errors.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill_engine.data.config import DataSection
from distill_engine.engine.config import OptimizerSection
from distill_engine.losses.config import DecoderWeights, LayerMap, LossesSection
from distill_engine.metrics.named import better
from distill_engine.recipe.section import Fraction, NonNegative, Positive, PositiveInt, Section, name_of
from distill_engine.telemetry.config import LoggingSection

Placed = Literal["zero3", "node", "replica", "offload"]
Placement = Literal["auto"] | Placed


class TeacherSection(Section):
    """The model that is imitated. It is never trained."""

    path: str | None = Field(None, description="Folder or Hugging Face name; null: train without a teacher.")
    revision: str | None = Field(None, description="Commit or tag of a Hugging Face name; pin it for long runs.")
    source: Annotated[str, name_of("teachers")] = Field(
        "live", description="Where its outputs come from; `distill list teachers` has the names."
    )
    cache: str | None = Field(
        None, description="source: cache: the folder that `distill cache` wrote; path remains the teacher it is of."
    )
    placement: Placement = Field(
        "auto",
        description="Where its weights live. auto: a replica on one rank, else zero3. "
        "zero3: shards over all ranks; node: shards over each node's ranks, so "
        "no byte of it crosses the network; replica: a copy on every rank; offload: shards in host memory.",
    )
    window: bool = Field(
        False,
        description="One teacher pass for all micro-batches of an optimizer step: layers are gathered once per step "
        "instead of once per micro-batch, and its features of the whole step are held at a time.",
    )
    overlap: bool = Field(
        False,
        description="On a GPU, with placement replica: its pass of the next micro-batch is begun before the student "
        "works on this one, on a stream of its own; the features of two micro-batches are held.",
    )
    allow_noise: bool = Field(
        False,
        description="Begin although the teacher predicts gold labels no better than chance (perplexity above half its "
        "vocabulary): random weights, as tests have them.",
    )


class TeacherShare(Section):
    """One of several teachers, whose probabilities are averaged."""

    path: str = Field(description="Folder or Hugging Face name.")
    revision: str | None = Field(None, description="Commit or tag of a Hugging Face name.")
    weight: Positive = Field(1.0, description="Its share of the mean, relative to the others'.")
    features: bool = Field(
        False, description="Hidden states and attention are compared with this one's; default: the first one's."
    )


class RolloutSection(Section):
    """Whose text the student learns on."""

    source: Annotated[str, name_of("rollouts")] = Field("gold", description="`distill list rollouts` has the names.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="student: share of micro-batches that are its own samples (lambda of GKD)."
    )
    temperature: Positive = Field(1.0, description="student: of its samples.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="student: samples are drawn from the most probable tokens that together have this probability."
    )
    new_tokens: PositiveInt | None = Field(
        None, description="student: tokens of a sample, at most; null: data.label_tokens. Fewer are cheaper."
    )


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


class BatchSection(Section):
    """How many examples make a step."""

    per_rank: PositiveInt = Field(16, description="Examples of one micro-batch on one rank.")
    accumulation_steps: PositiveInt = Field(1, description="Micro-batches per optimizer step.")
    pad_to_multiple_of: PositiveInt = Field(1, description="Round padded lengths up to this (8 for fp16 in ParlAI).")
    max_tokens: PositiveInt | None = Field(
        None,
        description="Instead of per_rank: micro-batches of examples of about one length, as many as fit into this many "
        "positions, context and label, padding counted.",
    )
    sort_step: bool = Field(
        False,
        description="Cut a step's examples into micro-batches by length: less padding, the same step.",
    )
    length_window: PositiveInt = Field(
        8192, description="max_tokens: so many consecutive examples of the mixture are sorted by length at a time."
    )


class ScheduleSection(Section):
    """How the learning rate moves, counted in applied optimizer steps."""

    name: Literal["constant", "linear", "cosine", "reduce_on_plateau"] = Field("constant")
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up from warmup_start * learning_rate.")
    warmup_start: Fraction = Field(1e-4, description="Share of the learning rate at the first warm-up step.")
    total_steps: PositiveInt | None = Field(None, description="linear, cosine: where they end; null: stop.max_steps.")
    final_share: Fraction = Field(0.0, description="linear, cosine: share of the learning rate at the end.")
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="reduce_on_plateau: factor of a drop.")
    patience: int = Field(3, ge=0, description="reduce_on_plateau: bad validations before a drop.")
    threshold: NonNegative = Field(1e-4, description="reduce_on_plateau: relative improvement that counts.")


class ValidationSection(Section):
    """When the student is measured, and what the numbers decide. Whichever trigger fires first wins."""

    every_steps: PositiveInt | None = Field(None, description="Validate every N applied optimizer steps.")
    every_epochs: Positive | None = Field(None, description="Validate every N epochs of training examples.")
    every_seconds: Positive | None = Field(None, description="Validate every N seconds (agreed across ranks).")
    metric: str = Field("ppl", description="Metric that decides best and patience; see docs/metrics.md.")
    average: Literal["macro", "micro"] = Field(
        "macro",
        description="What ppl, loss and the like are over several datasets. macro: mean of their values, as ParlAI; "
        "micro: of all tokens together (ParlAI's --aggregate-micro).",
    )
    direction: Literal["min", "max"] | None = Field(
        None, description="Which way is better; null: as the metric says. Needed where it says neither."
    )
    generate_examples: int = Field(
        0,
        ge=0,
        description="The first N examples of each dataset are answered at each validation, with the model's own "
        "generation settings, and all metrics of texts (distill list metrics) are measured. 0: none.",
    )
    patience: int | None = Field(20, gt=0, description="Stop after N validations without improvement; null: never.")
    stop_at: float | None = Field(None, description="Stop once the metric is at least this good.")
    per_rank_batch: PositiveInt | None = Field(None, description="Validation batch on one rank; null: batch.per_rank.")
    samples: int = Field(
        4,
        ge=0,
        description="The first N validation examples of each dataset are answered at each validation, with the model's "
        "own generation settings: a table beside the teacher's replies (made once, before the first step: a teacher "
        "pass per token), and an alarm if replies degenerate. 0: none.",
    )
    save_after_validation: bool = Field(True, description="Write a checkpoint after each validation.")

    @property
    def better(self) -> Literal["min", "max"]:
        """Which way the metric is better: the direction that is given, or the metric's own."""
        own = better(self.metric)
        return self.direction or ("max" if own == "max" else "min")


class StopSection(Section):
    """Limits of a run; null means no limit."""

    max_steps: PositiveInt | None = Field(None, description="Applied optimizer steps.")
    max_epochs: Positive | None = Field(None, description="Passes over the training examples.")
    max_seconds: Positive | None = Field(None, description="Seconds of training, summed over restarts.")
    max_skipped_steps: PositiveInt = Field(100, description="Give up after N skipped steps (overflow, NaN) in a row.")
    hang_seconds: Positive | None = Field(
        1800.0,
        description="A rank without progress for so long writes where it stands (hang/ in the run folder) and ends "
        "with code 75, to be started again. More than one part of a checkpoint takes to read or write; null: never.",
    )


class CheckpointSection(Section):
    """Resuming. Checkpoints are complete or absent, never half-written."""

    every_steps: PositiveInt | None = Field(None, description="Also save every N applied optimizer steps.")
    every_seconds: Positive | None = Field(None, description="Also save every N seconds.")
    keep_last: PositiveInt = Field(2, description="The newest N checkpoints stay; the last is what a restart uses.")
    keep_best: int = Field(0, ge=0, description="So do those of the best N validations by validation.metric.")
    keep_every: PositiveInt | None = Field(None, description="And the first at or after every N steps, for good.")
    background: bool = Field(
        True,
        description="Write while training goes on, from a copy in host memory (as large as the rank's part of the "
        "checkpoint); false: steps wait until it is written.",
    )


class Recipe(Section):
    """One run, complete: the same recipe on the same machine gives the same student."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run folder and the W&B run.")
    seed: int = Field(1, ge=0, description="Seeds initial weights, dropout and data order.")
    teacher: TeacherSection = Field(default_factory=lambda: TeacherSection())
    teachers: list[TeacherShare] = Field(
        default_factory=list,
        description="Several teachers of one vocabulary, instead of teacher.path: the mean of their probabilities is "
        "imitated. The first is also the one whose layers are copied, and compared unless another says `features`.",
    )
    rollout: RolloutSection = Field(default_factory=lambda: RolloutSection())
    student: StudentSection = Field(default_factory=lambda: StudentSection())
    losses: LossesSection = Field(default_factory=lambda: LossesSection())
    data: DataSection
    batch: BatchSection = Field(default_factory=lambda: BatchSection())
    optimizer: OptimizerSection
    schedule: ScheduleSection = Field(default_factory=lambda: ScheduleSection())
    validation: ValidationSection = Field(default_factory=lambda: ValidationSection())
    stop: StopSection = Field(default_factory=lambda: StopSection())
    checkpoint: CheckpointSection = Field(default_factory=lambda: CheckpointSection())
    logging: LoggingSection = Field(default_factory=lambda: LoggingSection())

    @property
    def features_of(self) -> int:
        """The number of the teacher whose hidden states and attention are compared with."""
        return next((number for number, one in enumerate(self.teachers) if one.features), 0)

    @model_validator(mode="after")
    def _without_terms_of_a_frozen_encoder(self) -> Recipe:
        """They would be constants; what asks a recipe for its weights sees those that are left."""
        if self.student.encoder_is_frozen:
            left = self.losses.model_copy(update={"weights": DecoderWeights(self.losses.weights.root)})
            object.__setattr__(self, "losses", left)
        return self
