"""Tokenizers against ParlAI's definitions: the same library for byte-level BPE, Python's own words for the rest."""

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from distill_engine.interop.parlai.architecture import Architecture
from distill_engine.interop.parlai.dictionary import Dictionary, build_dictionary, byte_spelling, read_bpe, read_lines
from distill_engine.interop.parlai.options.errors import ParlaiError
from distill_engine.interop.parlai.tokenizer import build_backend, build_tokenizer, check_kind

FIXTURE = Path(__file__).parents[3] / "fixtures" / "taskdata" / "tiny_parlai" / "blender"
VOCAB, MERGES = FIXTURE / "model.dict-vocab.json", FIXTURE / "model.dict-merges.txt"
WORDS = ["hi", "there", ".", "!", "\n", "é", "½", "_x1", "don", "'", "t", "b\nc"]
TEXTS = st.text(
    st.one_of(
        st.sampled_from(" \n\t.,!?'_aé½\u0301\u203f\x1c\x85\xa0٣Ⅷ漢😀"), st.characters(exclude_categories=["Cs"])
    ),
    max_size=20,
)


def split_words(kind: str, text: str) -> list[str]:
    """ParlAI's three word splitters."""
    if kind == "re":
        return re.findall(r"\w+|[^\w\s]|\n", text)
    if kind == "split":
        return re.sub(r"([.,;:!?])", r" \1 ", text).split()
    return text.strip().split(" ")


def known_to_python(text: str) -> bool:
    """The two libraries may know different versions of Unicode."""
    return all(unicodedata.category(character) not in ("Cn", "Cs") for character in text)


@pytest.mark.parametrize("kind", ["re", "split", "space"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=TEXTS)
@example(text="hi  there\n b\nc .\x1c")
def test_words_are_pythons(kind, text):
    assume(known_to_python(text) and text.strip())
    dictionary = build_dictionary(WORDS, None, {"dict_tokenizer": kind})
    expected = [dictionary.ids.get(word, 3) for word in split_words(kind, text)]
    assert build_backend(dictionary).encode(text, add_special_tokens=False).ids == expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=TEXTS)
@example(text="hello __start__ there</s> ")
def test_bytelevelbpe_is_the_library_parlai_uses(text):
    bpe = read_bpe(VOCAB, MERGES)
    dictionary = build_dictionary(read_lines(FIXTURE / "model.dict"), bpe, {"dict_tokenizer": "bytelevelbpe"})
    theirs = ByteLevelBPETokenizer(str(VOCAB), str(MERGES), True)
    theirs.add_special_tokens(list(dictionary.tokens[:4]))
    expected = [dictionary.ids[token] for token in theirs.encode(text).tokens]
    assert build_backend(dictionary).encode(text, add_special_tokens=False).ids == expected


def gpt2_dictionary(**options) -> Dictionary:
    """A dictionary in gpt2's spelling, in an order of its own: ids go by the file, not by the BPE."""
    bpe = read_bpe(VOCAB, MERGES)
    lines = [byte_spelling(token) for token in sorted(bpe.vocabulary, reverse=True)]
    return build_dictionary(lines, bpe, {"dict_tokenizer": "gpt2", **options})


@pytest.mark.parametrize("prefix", [None, True])
def test_gpt2_puts_a_space_in_front_only_when_told_and_then_always(prefix):
    dictionary = gpt2_dictionary(bpe_add_prefix_space=prefix)
    theirs = ByteLevelBPETokenizer(str(VOCAB), str(MERGES), False)
    backend = build_backend(dictionary)
    for text in ("hello there", " x", "Ünï 漢\n5"):
        read = f" {text}" if prefix else text
        expected = [dictionary.ids[token] for token in theirs.encode(read).tokens]
        assert backend.encode(text, add_special_tokens=False).ids == expected


def test_typed_special_tokens_are_found_where_parlai_finds_them():
    plain = Architecture("generator", 8, 8, 1, 1, 1, 64, "gelu", True, 0.0, 0.0, 0.0)
    ids = {}
    for kind, dictionary in {"bytelevelbpe": None, "gpt2": gpt2_dictionary()}.items():
        dictionary = dictionary or build_dictionary([], read_bpe(VOCAB, MERGES), {"dict_tokenizer": kind})
        tokenizer = build_tokenizer(dictionary, {"dict_tokenizer": kind}, plain.agent, plain.n_positions)
        ids[kind] = tokenizer("a __start__", add_special_tokens=False).input_ids
    assert 1 in ids["bytelevelbpe"] and 1 not in ids["gpt2"]


def test_atomic_tokens_and_case():
    options = {"dict_tokenizer": "re", "dict_lower": True, "special_tok_lst": "__Cake__"}
    dictionary = build_dictionary(["hi"], None, options)
    ids = build_backend(dictionary).encode("HI__Cake__hi", add_special_tokens=False).ids
    assert ids == [dictionary.ids[word] for word in ("hi", "__Cake__", "hi")]


def test_whole_texts_get_what_parlai_adds():
    dictionary = build_dictionary(WORDS, None, {"dict_tokenizer": "re"})
    hi = dictionary.ids["hi"]
    for agent, options, expected in (
        ("generator", {"history_add_global_end_token": "end"}, [hi, 2]),
        ("generator", {}, [hi]),
        ("bart", {}, [1, hi, 2]),
    ):
        assert build_tokenizer(dictionary, options, agent, 64)("hi").input_ids == expected


@pytest.mark.parametrize("options", [{"dict_tokenizer": "bpe"}, {"dict_tokenizer": "x"}, {"dict_max_ngram_size": 2}])
def test_other_tokenizers_are_refused(options):
    with pytest.raises(ParlaiError, match=next(iter(options))):
        check_kind(options)
