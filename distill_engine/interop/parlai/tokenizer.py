"""A Hugging Face tokenizer that gives ParlAI's ids.

Byte-level BPEs (`bytelevelbpe`, `gpt2`) and the word splitters (`re`, `split`, `space`) have exact counterparts in
the `tokenizers` library. `bpe` (subword-nmt) and `nltk` have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from distill_engine.interop.parlai.architecture import END, PAD, START, UNKNOWN, Agent
from distill_engine.interop.parlai.dictionary import BYTE_LEVEL, WORD_LEVEL, Dictionary
from distill_engine.interop.parlai.options.errors import ParlaiError, shown

PROVENANCE = "parlai"  # key in tokenizer_config.json; it survives save_pretrained, and so reaches every export

# Python's classes, not the regular expression engine's: its \w takes marks and leaves out numbers that are no digits.
_WORD = r"[\p{L}\p{N}_]"
_SPACE = r"[\s\x{1c}-\x{1f}]"
_EMPTY = "\ue000"  # stands for the empty word that ParlAI finds between two spaces; no dictionary has it

_REFUSED = {
    "bpe": "its merges (subword-nmt) run through pieces that have no id of their own",
    "nltk": "it needs NLTK's sentence models",
}


def check_kind(options: Mapping[str, Any]) -> str:
    """The dict_tokenizer, if it has an exact counterpart. Raises ParlaiError."""
    kind = str(options.get("dict_tokenizer", "re"))
    if kind not in (*BYTE_LEVEL, *WORD_LEVEL):
        why = f": {_REFUSED[kind]}" if kind in _REFUSED else ""
        raise ParlaiError(
            f"dict_tokenizer is {shown(kind)}, which cannot be converted exactly{why}. "
            f"These can: {', '.join((*BYTE_LEVEL, *WORD_LEVEL))}. Convert a model with one of them."
        )
    if (options.get("dict_max_ngram_size") or -1) > 1:
        raise ParlaiError(
            f"dict_max_ngram_size is {options['dict_max_ngram_size']}. Words that are joined after splitting have no "
            "counterpart. Only models without n-grams (-1) can be converted."
        )
    return kind


def build_backend(dictionary: Dictionary) -> Tokenizer:
    """The `tokenizers` pipeline of a dictionary, special tokens and atomic ones added."""
    backend = _byte_level(dictionary) if dictionary.kind in BYTE_LEVEL else _word_level(dictionary)
    backend.add_special_tokens([_whole(name, special=True) for name in dictionary.tokens[: UNKNOWN + 1]])
    backend.add_tokens([_whole(name, special=False) for name in dictionary.atomic])
    return backend


def build_tokenizer(
    dictionary: Dictionary, options: Mapping[str, Any], agent: Agent, positions: int
) -> PreTrainedTokenizerFast:
    """The tokenizer for a Hugging Face folder. Called on a text it adds what ParlAI adds to contexts."""
    backend = build_backend(dictionary)
    start, end = dictionary.tokens[START], dictionary.tokens[END]
    ends = options.get("history_add_global_end_token") is not None
    template = f"{start} $A {end}" if agent == "bart" else f"$A {end}" if ends else "$A"
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(start, START), (end, END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=dictionary.tokens[PAD],
        bos_token=start,
        eos_token=end,
        unk_token=dictionary.tokens[UNKNOWN],
        model_max_length=positions,
        truncation_side="left",
        clean_up_tokenization_spaces=False,
        # bytelevelbpe finds special tokens that somebody typed; the other kinds read them as text
        split_special_tokens=dictionary.kind != "bytelevelbpe",
        **{PROVENANCE: provenance(options)},
    )


def provenance(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a Hugging Face folder has no place for; an export to ParlAI writes them again."""
    return {name: options[name] for name in REMEMBERED if name in options}


REMEMBERED = (
    "dict_tokenizer",
    "dict_lower",
    "dict_nulltoken",
    "dict_starttoken",
    "dict_endtoken",
    "dict_unktoken",
    "bpe_add_prefix_space",
    "special_tok_lst",
    "person_tokens",
    "delimiter",
    "history_add_global_end_token",
    "truncate",
    "text_truncate",
    "label_truncate",
    "history_size",
    "split_lines",
    "learn_positional_embeddings",
)


def _whole(name: str, *, special: bool) -> AddedToken:
    return AddedToken(name, special=special, normalized=False)


def _byte_level(dictionary: Dictionary) -> Tokenizer:
    assert dictionary.bpe is not None, "byte-level dictionaries are built with their BPE"
    backend = Tokenizer(BPE(vocab=dictionary.ids, merges=dictionary.bpe.merges))
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if dictionary.lower else []
    prefix = dictionary.add_prefix_space
    if prefix and dictionary.kind != "bytelevelbpe":  # these put a space even before a space
        steps.append(normalizers.Prepend(" "))
        prefix = False
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    return backend


def _word_level(dictionary: Dictionary) -> Tokenizer:
    backend = Tokenizer(WordLevel(dictionary.ids, unk_token=dictionary.tokens[UNKNOWN]))
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if dictionary.lower else []
    if dictionary.kind == "space":
        steps += [
            normalizers.Replace(Regex(rf"\A{_SPACE}+|{_SPACE}+\z"), ""),
            normalizers.Replace(Regex(r"(?<= )(?= )"), _EMPTY),
        ]
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    words = {
        "re": rf"{_WORD}+|(?!{_WORD}|{_SPACE}).|\n",
        "split": rf"[.,;:!?]|(?:(?!{_SPACE})[^.,;:!?])+",
        "space": r"[^ ]+",
    }
    # "removed" takes away what matches; inverted, what lies between the matches
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(words[dictionary.kind]), "removed", invert=True)
    return backend
