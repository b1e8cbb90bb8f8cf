"""Tokenizers of published folders that hold sentencepiece models and no tokenizer.json, trained on a few sentences.

Tests get this module by its name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import M2M100Tokenizer, MarianTokenizer
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

SOURCES = ("the dog sees the rain", "a cat likes soup today", "the rain sees a dog", "soup is what the cat likes")
TARGETS = (
    "der hund sieht den regen",
    "eine katze mag suppe",
    "der regen sieht einen hund",
    "suppe mag die katze",
)


def train(file: Path, sentences: tuple[str, ...], pieces: int) -> list[str]:
    """A unigram model; returns its pieces beside the three special ones."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 5), model_prefix=str(file.with_suffix("")), vocab_size=pieces, num_threads=1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    file.with_suffix(".model").rename(file)
    file.with_suffix(".vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return [model.id_to_piece(number) for number in range(3, model.get_piece_size())]


def marian(folder: Path) -> Any:
    """Two models, one vocabulary; END is 0 and PAD the last entry, as opus-mt has them."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = (("source.spm", SOURCES), ("target.spm", TARGETS))
    pieces = [piece for file, sentences in sides for piece in train(folder / file, sentences, 34)]
    words = dict.fromkeys(("</s>", "<unk>", ">>fra<<", *pieces, "<pad>"))
    ids = {token: number for number, token in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    files = (str(folder / name) for name in ("source.spm", "target.spm", "vocab.json"))
    tokenizer = MarianTokenizer(*files, source_lang="en", target_lang="de")
    tokenizer.save_pretrained(folder)
    return tokenizer


def m2m_100(folder: Path) -> Any:
    """One model; a hundred languages follow its vocabulary, and filling entries them."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = train(folder / "sentencepiece.bpe.model", SOURCES + TARGETS, 44)
    ids = {token: number for number, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", *pieces))}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    # published files name the languages so; in the order in which ids follow the vocabulary
    languages = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    files = str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model")
    tokenizer = M2M100Tokenizer(*files, additional_special_tokens=languages)
    tokenizer.save_pretrained(folder)
    return tokenizer
