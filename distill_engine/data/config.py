"""The recipe's sections on data and batches. No torch: recipes and the launcher read it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distill_engine.data.kinds.named import AnySource
from distill_engine.recipe.section import Positive, PositiveInt, Section


class DataSection(Section):
    """Which examples, and how they become token ids."""

    tasks: list[AnySource] = Field(min_length=1, description="Sources of the training mixture.")
    weights_mean: Literal["episodes", "examples", "passes"] = Field(
        "episodes",
        description="What weights are shares of. episodes: conversations, as ParlAI's --multitask-weights; examples: "
        "turns; passes: equal weights show every example of every dataset equally often.",
    )
    temperature: Positive = Field(
        1.0, description="Flattens the datasets' shares of the examples: share ** (1 / temperature). 1 leaves them."
    )
    root: str | None = Field(None, description="ParlAI data folder that holds the downloaded dialogue datasets.")
    max_bad_rows: int = Field(
        0, ge=0, description="Leave out up to N rows of a split that are wrong (no text, broken); more are an error."
    )
    cache_dir: str | None = Field(
        None,
        description="Folder that keeps tokenised datasets; null: $DISTILL_ENGINE_CACHE, or distill_engine in "
        "$XDG_CACHE_HOME or ~/.cache.",
    )
    tokenizer: str | None = Field(None, description="Tokenizer folder or name; null: the teacher's.")
    context_tokens: PositiveInt = Field(
        128, description="Contexts keep N tokens, special ones included: the last or the first, as their kind says."
    )
    label_tokens: PositiveInt = Field(128, description="Labels keep their first N tokens, end token included.")
    delimiter: str = Field("\n", description="Text between history entries, tokenised on its own.")
    history_end_token: bool = Field(
        False, description="Append the end token to contexts, where the family does not always."
    )


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
