"""Tiny teachers whose tokenizers know languages, as the published many-to-many ones: nothing says what they write.

Tests get this module by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_families
import tiny_sentencepiece
from transformers import GenerationConfig, MBart50Tokenizer, MBartTokenizer, NllbTokenizer

_SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
CODES = ("eng_Latn", "fra_Latn", "deu_Latn")


def nllb_tokenizer() -> Any:
    """Letters are its words."""
    vocabulary = {token: number for number, token in enumerate(("<s>", "<pad>", "</s>", "<unk>"))}
    vocabulary |= {letter: 4 + number for number, letter in enumerate("\u2581abcdefghijklmnopqrstuvwxyz")}
    return NllbTokenizer(vocab=vocabulary, extra_special_tokens=list(CODES))


def nllb_with_merges() -> Any:
    """Words of letters, and of pairs of letters."""
    vocabulary = dict(nllb_tokenizer().backend_tokenizer.get_vocab(with_added_tokens=False))
    pairs = [("a", "b"), ("c", "d"), ("ab", "cd"), ("e", "f"), ("x", "y"), ("xy", "z")]
    made = {left + right for left, right in pairs}
    vocabulary |= {word: len(vocabulary) + number for number, word in enumerate(sorted(made))}
    return NllbTokenizer(vocab=vocabulary, merges=pairs, extra_special_tokens=list(CODES))


# what is saved beside the network of a published model, what its decoder starts with, and other sizes
KINDS: dict[str, tuple[str, Callable[[Path], Any], int, dict[str, int]]] = {
    "nllb": ("nllb-200-distilled-600M", lambda folder: nllb_tokenizer().save_pretrained(folder), 2, {}),
    "nllb with merges": ("nllb-200-distilled-600M", lambda folder: nllb_with_merges().save_pretrained(folder), 2, {}),
    "m2m_100": ("nllb-200-distilled-600M", tiny_sentencepiece.m2m_100, 2, {"vocab_size": 160}),
    "mbart50": ("mbart-large-50", lambda folder: MBart50Tokenizer().save_pretrained(folder), 2, {}),
    "mbart": ("mbart-large-50", lambda folder: MBartTokenizer().save_pretrained(folder), 9, {}),
}


def save(kind: str, folder: Path) -> Path:
    """A teacher's folder."""
    name, write_tokenizer, start, sizes = KINDS[kind]
    ids = _SPECIAL | {"decoder_start_token_id": start}
    model = tiny_families.model(name, **ids, **sizes)
    model.generation_config = GenerationConfig(**ids, max_length=12)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def save_marian(folder: Path) -> Path:
    """A teacher as opus-mt is published: a sentencepiece model for each side, PAD last and first to be read."""
    tokenizer = tiny_sentencepiece.marian(folder)
    pad = tokenizer.pad_token_id
    ids = {"pad_token_id": pad, "eos_token_id": 0, "bos_token_id": 0, "decoder_start_token_id": pad}
    model = tiny_families.model("opus-mt-en-de", vocab_size=len(tokenizer), **ids)
    model.generation_config = GenerationConfig(**ids, max_length=12, num_beams=2, bad_words_ids=[[pad]])
    model.save_pretrained(folder)
    return folder
