"""Which id a token has: ParlAI's rules about order, repeats, escapes and padding."""

import pytest

from distill_engine.interop.parlai.dictionary import (
    Bpe,
    build_dictionary,
    byte_spelling,
    check_fits,
    escape,
    read_lines,
    special_tokens,
    unescape,
)
from distill_engine.interop.parlai.options.errors import ParlaiError

BPE = Bpe({"a": 0, "b": 1, "ab": 2}, [("a", "b")])


def test_special_tokens_come_first_and_repeats_count_once():
    tokens = build_dictionary(["x", "__end__", "y", "x"], None, {}).tokens
    assert tokens == ("__null__", "__start__", "__end__", "__unk__", "x", "y")


def test_names_of_special_tokens_are_options():
    options = {"dict_nulltoken": "<pad>", "dict_starttoken": "<s>", "dict_endtoken": "</s>", "dict_unktoken": "<unk>"}
    assert build_dictionary(["x"], None, options).tokens[:4] == ("<pad>", "<s>", "</s>", "<unk>")
    with pytest.raises(ParlaiError, match="share a name"):
        special_tokens(options | {"dict_endtoken": "<s>"})


def test_old_spellings_of_special_tokens_are_the_new_ones():
    assert build_dictionary(["__NULL__", "__UNK__", "x"], None, {}).tokens[4:] == ("x",)


def test_tokens_that_only_the_bpe_has_follow_at_the_end_in_its_order():
    tokens = build_dictionary(["b", "z"], BPE, {"dict_tokenizer": "bytelevelbpe"}).tokens
    assert tokens[4:] == ("b", "z", "a", "ab")


def test_slow_bytelevel_bpe_goes_by_the_bpe_alone():
    tokens = build_dictionary(["b", "a"], BPE, {"dict_tokenizer": "slow_bytelevel_bpe"}).tokens
    assert tokens[4:] == ("a", "b", "ab")


def test_gpt2_spelling_is_undone():
    bpe = Bpe({"Ġ": 0, "a": 1, "Ġa": 2}, [("Ġ", "a")])
    lines = ["\\xc4\\xa0a", "a", "\\xc4\\xa0"]
    assert [byte_spelling(token) for token in ("Ġa", "a", "Ġ")] == lines
    assert build_dictionary(lines, bpe, {"dict_tokenizer": "gpt2"}).tokens[4:] == ("Ġa", "a", "Ġ")


@pytest.mark.parametrize("option", ["fp16", "force_fp16_tokens"])
def test_fp16_pads_to_a_multiple_of_8(option):
    tokens = build_dictionary(["x"], None, {option: True}).tokens
    assert tokens[5:] == ("__FP16_PAD_0__", "__FP16_PAD_1__", "__FP16_PAD_2__")


def test_special_lists_and_person_tokens_stand_before_the_padding():
    options = {"special_tok_lst": "__A__,__B__", "person_tokens": True, "fp16": True}
    dictionary = build_dictionary(["x", "__B__"], None, options)
    assert dictionary.tokens[4:] == ("x", "__B__", "__A__", "__p1__", "__p2__", *dictionary.tokens[9:])
    assert dictionary.atomic == ("__A__", "__B__") and len(dictionary.tokens) == 16


def test_escapes_go_both_ways(tmp_path):
    tokens = ["a\nb", "\t", "\r", "plain", "ü漢"]
    assert [unescape(escape(token)) for token in tokens] == tokens
    path = tmp_path / "m.dict"
    path.write_text("".join(f"{escape(token)}\t3\n" for token in tokens), encoding="utf-8")
    assert read_lines(path) == tokens


def test_a_dictionary_fits_exactly_or_padded(tmp_path):
    dictionary = build_dictionary(["x"], None, {})
    assert check_fits(dictionary, 5, tmp_path).tokens == dictionary.tokens
    assert check_fits(dictionary, 8, tmp_path).tokens[5:] == tuple(f"__FP16_PAD_{n}__" for n in range(3))
    for rows in (4, 6, 9):
        with pytest.raises(ParlaiError, match=f"5 tokens.*{rows} rows"):
            check_fits(dictionary, rows, tmp_path)
