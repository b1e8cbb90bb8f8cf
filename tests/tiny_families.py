"""Tiny random models of every family, with the oddities of the published configurations.

Tests get this module by its name. Weights differ everywhere; norms, biases and the logits' bias are not 0 and 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.families.lookup import family_named, shape_of
from distill_engine.models.classes import auto_class, untie
from distill_engine.values import IGNORED_LABEL, Audio, Batch, Tokens

VOCABULARY, WIDTH, HEADS, FFN, POSITIONS = 64, 16, 2, 24, 32
ENCODER_LAYERS, DECODER_LAYERS = 3, 3
PAD, START, END, LANGUAGE, OTHER_LANGUAGE = 0, 1, 2, 61, 62
FIRST_WORD = 5

_BART = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": ENCODER_LAYERS, "decoder_layers": DECODER_LAYERS,
    "num_hidden_layers": ENCODER_LAYERS, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN, "max_position_embeddings": POSITIONS, "dropout": 0.0,
    "attention_dropout": 0.0, "activation_dropout": 0.0, "pad_token_id": PAD, "bos_token_id": START,
    "eos_token_id": END, "init_std": 0.3,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 6, "d_ff": FFN, "num_layers": ENCODER_LAYERS,
    "num_decoder_layers": DECODER_LAYERS, "num_heads": HEADS, "dropout_rate": 0.0, "pad_token_id": PAD,
    "eos_token_id": END, "decoder_start_token_id": PAD, "relative_attention_num_buckets": 8,
}  # fmt: skip
_V11 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# published model -> (family, configuration, generation settings beside it)
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bart-large-cnn": (
        "bart",
        {**_BART, "decoder_start_token_id": END, "forced_bos_token_id": START, "scale_embedding": False},
        {"forced_bos_token_id": START, "num_beams": 4, "min_length": 3, "no_repeat_ngram_size": 3},
    ),
    "blenderbot-400M-distill": (
        "blenderbot", {**_BART, "decoder_start_token_id": START, "scale_embedding": True}, {"num_beams": 2},
    ),
    "blenderbot_small-90M": (
        "blenderbot-small",
        {**_BART, "decoder_start_token_id": START, "scale_embedding": True, "activation_function": "gelu"},
        {},
    ),
    "nllb-200-distilled-600M": (
        "m2m_100",
        {**_BART, "decoder_start_token_id": END, "scale_embedding": True, "activation_function": "relu"},
        {"forced_bos_token_id": OTHER_LANGUAGE},
    ),
    "opus-mt-en-de": (
        "marian",
        {**_BART, "pad_token_id": VOCABULARY - 1, "eos_token_id": 0, "decoder_start_token_id": VOCABULARY - 1,
         "scale_embedding": True, "activation_function": "swish", "static_position_embeddings": True},
        {"bad_words_ids": [[VOCABULARY - 1]], "num_beams": 2},
    ),
    "opus-mt with two vocabularies": (
        "marian",
        {**_BART, "decoder_start_token_id": PAD, "scale_embedding": True, "activation_function": "swish",
         "share_encoder_decoder_embeddings": False, "decoder_vocab_size": VOCABULARY},
        {},
    ),
    "pegasus-xsum": (
        "pegasus",
        {**_BART, "eos_token_id": 1, "bos_token_id": 0, "decoder_start_token_id": PAD, "scale_embedding": True,
         "activation_function": "relu"},
        {"length_penalty": 0.6, "num_beams": 2},
    ),
    "mbart-large-50": (
        "mbart",
        {**_BART, "decoder_start_token_id": END, "scale_embedding": True, "activation_function": "gelu"},
        {"forced_bos_token_id": OTHER_LANGUAGE},
    ),
    "t5-small": ("t5", _T5, {}),
    "flan-t5-small": ("t5", {**_T5, **_V11}, {}),
    "mt5-small": ("mt5", {**_T5, **_V11}, {}),
    "umt5-small": ("umt5", {**_T5, **_V11}, {}),
    "whisper-large-v3": (
        "whisper",
        {**_BART, "num_mel_bins": 10, "max_source_positions": 12, "max_target_positions": POSITIONS,
         "pad_token_id": PAD, "bos_token_id": END, "eos_token_id": END, "decoder_start_token_id": START,
         "begin_suppress_tokens": [7, END]},
        {"pad_token_id": END, "language": "<|de|>", "task": "transcribe", "is_multilingual": True,
         "lang_to_id": {"<|en|>": LANGUAGE, "<|de|>": OTHER_LANGUAGE}, "task_to_id": {"translate": 3, "transcribe": 4},
         "no_timestamps_token_id": VOCABULARY - 1, "return_timestamps": False, "suppress_tokens": [8, 9],
         "begin_suppress_tokens": [7, END], "alignment_heads": [[0, 1], [2, 0], [2, 1]]},
    ),
}  # fmt: skip
OWN_HEADS = ("flan-t5-small", "mt5-small", "umt5-small")


def config(name: str, **more: Any) -> Any:
    """The tiny configuration of a published model."""
    family, values, _ = PUBLISHED[name]
    return AutoConfig.for_model(family, **(values | more))


def model(name: str, seed: int = 0, **more: Any) -> PreTrainedModel:
    """A model whose every tensor is random; generation settings as published."""
    family, values, generation = PUBLISHED[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made: Any = auto_class(config(name)).from_config(config(name, **more))
        if name in OWN_HEADS:
            untie(made, family_named(family).separable)
        for key, value in made.named_parameters():
            if value.requires_grad:
                scale = 0.3 if value.ndim == 1 or "bias" in key else 0.1
                value.add_(scale * torch.randn_like(value))
        bias = dict(made.named_buffers()).get("final_logits_bias")
        if bias is not None:
            bias.add_(0.3 * torch.randn_like(bias))
    ids = {key: values.get(key) for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    start = values.get("bos_token_id")
    made.generation_config = GenerationConfig(**(ids | {"bos_token_id": start, "max_length": 12} | generation))
    return made.eval()


def special(name: str) -> SpecialTokens:
    """What stands around its texts."""
    family, values, generation = PUBLISHED[name]
    return SpecialTokens(
        pad=values["pad_token_id"], end=values["eos_token_id"], start=values.get("bos_token_id"),
        decoder_start=values["decoder_start_token_id"], forced=generation.get("forced_bos_token_id"),
        source=LANGUAGE if "forced_bos_token_id" in generation else None,
        prompt=family_named(family).prompt(generation),
    )  # fmt: skip


def layout(name: str) -> SequenceLayout:
    """How the family wraps texts."""
    return family_named(PUBLISHED[name][0]).layout(special(name))


def save(name: str, folder: Path, seed: int = 0, **more: Any) -> Path:
    """A teacher as published: with the generation settings beside it."""
    model(name, seed, **more).save_pretrained(folder)
    return folder


def batch(name: str, contexts: tuple[int, ...] = (6, 3), labels: tuple[int, ...] = (4, 6), seed: int = 0) -> Batch:
    """Right-padded examples of so many words, in the family's layout."""
    draw, form = torch.Generator().manual_seed(seed), layout(name)
    rows = []
    for context, label in zip(contexts, labels, strict=True):
        words = torch.randint(FIRST_WORD, 60, (context + label,), generator=draw).tolist()
        said = [*words[context:], form.end_id]
        read = [*form.decoder_prefix, *said[:-1]]
        rows.append(([*form.context_prefix, *words[:context], *form.context_suffix], read,
                     [IGNORED_LABEL] * form.label_pad_prefix + said))  # fmt: skip
    ids, read, said = ([row[n] for row in rows] for n in range(3))
    mask = _padded([[1] * len(row) for row in ids], 0)
    inputs: Tokens | Audio = Tokens(_padded(ids, form.pad_id), mask)
    if (window := shape_of(config(name)).window) is not None:
        features = torch.randn(len(ids), window.channels, window.frames, generator=draw)
        inputs = Audio(features, torch.ones(len(ids), window.positions, dtype=torch.long))
    return Batch.of(inputs, _padded(read, form.pad_id), _padded(said, IGNORED_LABEL))


def _padded(rows: list[list[int]], filling: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filling] * (longest - len(row)) for row in rows])
