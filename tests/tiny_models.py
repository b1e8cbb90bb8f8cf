"""Tiny teachers, students, examples and batches: real models of both families, made in milliseconds, always the same.

Tests get this module as the fixture `tiny`; worker processes import it by its name.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    BartConfig,
    BartForConditionalGeneration,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
)

from distill_engine.data.order.collate import Picks, collate
from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.data.tokens.tokenised import Example, TokenLimits
from distill_engine.families.lookup import family_named
from distill_engine.families.shape import Sizes
from distill_engine.losses.config import LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.models.fake_int8 import with_fake_int8
from distill_engine.models.loading import Checkpoint
from distill_engine.student.build import TeacherLayers, build_student, student_config
from distill_engine.student.layer_map import resolve_layer_map
from distill_engine.student.projections import Projections, StudentModule
from distill_engine.values import Batch, Stack

VOCABULARY = 96
PAD, START, END = 0, 1, 2
SPECIAL = SpecialTokens(PAD, END, START)
FIRST_WORD = 5
ENCODER_LAYERS, DECODER_LAYERS, WIDTH = 2, 4, 32
STUDENT_SIZES = Sizes(encoder_layers=1, decoder_layers=2, width=16, ffn_width=32, dropout=0.0)
ALL_TERMS = LossWeights(
    task=1.0, encoder=0.5, embedding=2.0, hidden=1.5, self_attention=0.3, cross_attention=0.2, prediction=3.0
)
_MODELS = {
    "blenderbot": (BlenderbotConfig, BlenderbotForConditionalGeneration),
    "bart": (BartConfig, BartForConditionalGeneration),
}


def save_teacher(
    folder: Path,
    family: str,
    seed: int = 0,
    layers: tuple[int, int] = (ENCODER_LAYERS, DECODER_LAYERS),
    tie_word_embeddings: bool = True,
) -> Path:
    """A random teacher as save_pretrained writes it; every tensor, the logits' bias too, differs from its default."""
    config_class, model_class = _MODELS[family]
    config = config_class(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=64,
        scale_embedding=family == "blenderbot",
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=END if family == "bart" else START,
        forced_eos_token_id=END,
        tie_word_embeddings=tie_word_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():
            for value in (*model.parameters(), model.final_logits_bias):
                value.add_(0.08 * torch.randn_like(value))
    model.save_pretrained(folder)
    return folder


def layout(family: str) -> SequenceLayout:
    """How the family's texts are wrapped."""
    return family_named(family).layout(SPECIAL)


def examples(count: int, family: str, seed: int = 0) -> list[Example]:
    """Examples of very different lengths; no two contexts are equal."""
    random = np.random.default_rng(seed)
    form = layout(family)

    def words(low: int, high: int) -> list[int]:
        return random.integers(FIRST_WORD, VOCABULARY, random.integers(low, high)).tolist()

    made = []
    for number in range(count):
        context = [*form.context_prefix, FIRST_WORD + number % 90, *words(1, 14), *form.context_suffix]
        made.append(Example(np.array(context, np.int32), np.array([*words(1, 9), END], np.int32)))
    return made


def batch(chosen: Sequence[Example], family: str, pad_to: int = 1, dataset_ids: Sequence[int] = ()) -> Batch:
    """These examples as one micro-batch."""
    picks = Picks(np.array(dataset_ids), np.arange(len(chosen))) if dataset_ids else None
    return collate(chosen, layout(family), pad_to, picks=picks)


class Source:
    """Examples as a task, for the loaders."""

    def __init__(self, chosen: Sequence[Example]) -> None:
        self._examples = list(chosen)
        self.context_lengths = np.array([len(one.context_ids) for one in chosen], np.int64)
        self.label_lengths = np.array([len(one.label_ids) for one in chosen], np.int64)
        self.limits = TokenLimits(1024, 1024)  # nothing is cut here

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, index: int) -> Example:
        return self._examples[index]


def objective(sizes: Sizes = STUDENT_SIZES, weights: LossWeights = ALL_TERMS, **options: object) -> Objective:
    """All terms, layers mapped evenly."""
    depths = {
        Stack.ENCODER: (ENCODER_LAYERS, sizes.encoder_layers or ENCODER_LAYERS),
        Stack.DECODER: (DECODER_LAYERS, sizes.decoder_layers or DECODER_LAYERS),
    }
    return Objective(weights, {stack: resolve_layer_map("uniform", *both) for stack, both in depths.items()}, **options)


def student(
    teacher_folder: Path,
    goal: Objective,
    sizes: Sizes = STUDENT_SIZES,
    *,
    seed: int = 1,
    copied: bool = False,
    int8: bool = False,
) -> StudentModule:
    """A student with what `goal` asks for: projections where it is narrower, copied layers where `copied`, layers that
    can be rounded where `int8`."""
    config = student_config(AutoConfig.from_pretrained(teacher_folder), sizes)
    init = TeacherLayers(Checkpoint(teacher_folder), goal.supervision) if copied else None
    model = build_student(family_named(config.model_type), config, init, seed)
    projections = None
    if config.d_model != WIDTH:
        projections = Projections(goal.student_request(), config.d_model, WIDTH, seed)
    tables = [part.embedding for part in family_named(config.model_type).parts(model).stacks.values()]
    switch = with_fake_int8(model, tables) if int8 else None
    return StudentModule(adapt(model), projections, switch)
