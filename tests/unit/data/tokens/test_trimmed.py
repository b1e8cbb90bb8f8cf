"""Tokenizers with fewer tokens: covered text is cut as before, by every kind of model, and nothing else is promised."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from distill_engine.data.errors import DataError
from distill_engine.data.tokens.trimmed import kept_tokens, token_counts, trimmed_content

COVERED = ["the cat sat on the mat", "a cat and a hat on the mat", "the hat sat on a cat", "that cat sat"]
OTHERS = ["zebras jump over quick foxes", "why would anybody quote physics", "zigzag vexed wizards brew"] * 3
SPECIAL = ["<pad>", "</s>", "<unk>"]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(COVERED + OTHERS, trainer)
    return made


def sentencepiece_bpe() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=130, special_tokens=[*SPECIAL, "<0x41>"], show_progress=False)
    made.train_from_iterator(COVERED + OTHERS, trainer)
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False, max_piece_length=6
    )
    made.train_from_iterator(COVERED + OTHERS, trainer)
    return made


def word_level() -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(COVERED + OTHERS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return made


KINDS = {one.__name__: one for one in (byte_level, sentencepiece_bpe, unigram, word_level)}


@pytest.fixture(params=KINDS)
def whole(request) -> Tokenizer:
    """With a template that adds the end, padding, and a language that was added last."""
    made = KINDS[request.param]()
    made.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", made.token_to_id("</s>"))])
    made.enable_padding(pad_id=made.token_to_id("<pad>"), pad_token="<pad>")
    made.add_special_tokens([AddedToken("deu_Latn")])
    return made


def trimmed(whole: Tokenizer, texts: list[str]) -> tuple[Tokenizer, list[int]]:
    used = {number for text in texts for number in whole.encode(text).ids}
    content = json.loads(whole.to_str())
    kept = kept_tokens(content, used)
    return Tokenizer.from_str(json.dumps(trimmed_content(content, kept))), kept


def test_covered_text_is_cut_as_before_and_ids_are_dense(whole):
    made, kept = trimmed(whole, COVERED)
    assert kept == sorted(set(kept)) and len(kept) < whole.get_vocab_size()
    names = {token: number for number, token in enumerate(map(whole.id_to_token, kept))}
    assert made.get_vocab() == names and {*SPECIAL, "deu_Latn"} <= names.keys()
    mixtures = [*COVERED, "deu_Latn the mat sat", "hat cat mat that a the on", " ".join(COVERED[::-1])]
    seen = 0
    for text in mixtures:
        before = whole.encode(text)
        if not set(before.ids) <= set(kept):
            continue
        after = made.encode(text)
        assert [kept[number] for number in after.ids] == before.ids and after.tokens == before.tokens
        assert made.decode(after.ids) == whole.decode(before.ids)
        seen += 1
    assert seen >= len(COVERED)
    padded = made.encode_batch(["a", COVERED[0]])[0]
    assert padded.tokens[-1] == "<pad>" and padded.ids[-1] == names["<pad>"]


def test_bytes_stay_so_that_any_text_can_be_written():
    made, _ = trimmed(byte_level(), COVERED[:1])
    assert made.decode(made.encode("zebra \u20ac \U0001f642").ids).strip() == "zebra \u20ac \U0001f642"
    assert "<0x41>" in trimmed(sentencepiece_bpe(), COVERED[:1])[0].get_vocab()


def test_counts_are_those_of_all_arrays():
    arrays = [np.array([1, 1, 3], dtype=np.int32), np.array([3, 0], dtype=np.int32)]
    assert token_counts(arrays, 5).tolist() == [1, 2, 0, 2, 0]


@pytest.mark.parametrize(
    "changed, said",
    [({"type": "Nonsense"}, "its model is 'Nonsense'"), ({"end_of_word_suffix": "</w>"}, "with a prefix or suffix")],
)
def test_models_that_cannot_be_trimmed_are_told(changed, said):
    content = json.loads(byte_level().to_str())
    content["model"] |= changed
    with pytest.raises(DataError, match=said):
        kept_tokens(content, [1])
