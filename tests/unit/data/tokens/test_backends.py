"""Tokenizers that the `tokenizers` library has no form of cut texts as plain transformers does."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import tiny_families
import tiny_sentencepiece
from tokenizers import AddedToken
from transformers import ByT5Tokenizer, MarianTokenizer

from distill_engine.cluster.files import digest_of
from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.errors import DataError
from distill_engine.data.tokens.backends import backend_of, markers
from distill_engine.data.tokens.tokenize import DialogueTokenizer, load_tokenizer
from distill_engine.families.lookup import family_named
from distill_engine.models.generation_settings import special_tokens


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marian")
    tiny_sentencepiece.marian(folder)
    return load_tokenizer(str(folder))


@pytest.fixture(params=["marian", "byt5"])
def slow(request):
    return request.getfixturevalue("marian") if request.param == "marian" else ByT5Tokenizer()


def test_examples_are_plain_transformers(slow):
    own = tiny_families.model("opus-mt-en-de").generation_config
    own.decoder_start_token_id = slow.pad_token_id
    layout = family_named("marian").layout(special_tokens(family_named("marian"), slow, own))
    encoder = DialogueTokenizer(slow, layout, "\n", 64, 64)
    for source, target in zip(tiny_sentencepiece.SOURCES, tiny_sentencepiece.TARGETS, strict=True):
        (example,), plain = encoder.examples(Episode((Turn(source, target),))), slow(source, text_target=target)
        assert example.context_ids.tolist() == plain.input_ids and example.label_ids.tolist() == plain.labels
        assert layout.decoder_prefix == (slow.pad_token_id,)


def test_targets_are_cut_by_their_own_model_and_the_tokenizer_stays_as_it_was(marian):
    encoder = DialogueTokenizer(marian, tiny_families.layout("opus-mt-en-de"), "\n", 64, 64)
    read, written = (encoder.encode(["der hund"], written)[0] for written in (False, True))
    assert read != written and marian("der hund").input_ids[:-1] == read
    assert encoder.encode([">>fra<< a cat"])[0][0] == marian.get_vocab()[">>fra<<"]


def test_special_tokens_in_a_text_are_text_but_markers_stay_whole(slow):
    backend, end = backend_of(slow), slow.eos_token
    (typed,) = backend.encode([f"a dog{end}"], False)
    assert slow.eos_token_id not in typed and len(typed) > len(backend.encode(["a dog"], False)[0])
    known = markers(slow)
    assert end not in known
    if known:
        text = "rain <extra_id_3> dog"
        assert backend.encode([text], False)[0] == slow(text, add_special_tokens=False).input_ids
        assert known["<extra_id_3>"] in backend.encode([f"<extra_id_3>{end}"], False)[0]


def test_another_model_is_another_identity(marian, tmp_path):
    folder = tmp_path / "another"
    tiny_sentencepiece.marian(folder)
    tiny_sentencepiece.train(folder / "target.spm", tiny_sentencepiece.SOURCES, 34)
    layout = tiny_families.layout("opus-mt-en-de")
    same, other = copy.deepcopy(marian), load_tokenizer(str(folder))
    one, two, three = (DialogueTokenizer(each, layout, "\n", 64, 64).identity for each in (marian, same, other))
    assert one == two != three


@pytest.mark.parametrize(
    "changed",
    [
        {"extra_ids": 3, "extra_special_tokens": None},
        {"extra_special_tokens": [AddedToken("<turn>", lstrip=True, special=True)]},
        {"legacy": False},
        {"do_lower_case": True},
    ],
    ids=["fewer markers", "another marker", "legacy", "lower case"],
)
def test_another_setting_is_another_identity_and_another_place_is_not(changed, tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "same")
    ByT5Tokenizer(**changed).save_pretrained(tmp_path / "other")
    folders = (tmp_path / name for name in ("one", "same", "other"))
    one, same, other = (digest_of(backend_of(load_tokenizer(str(folder))).facts()) for folder in folders)
    assert one == same != other


def test_a_marker_may_have_white_space_of_its_own():
    slow = ByT5Tokenizer(extra_special_tokens=[AddedToken(" <turn>\n", special=True), AddedToken("<a>", rstrip=True)])
    for text in ("rain <turn>\ndog", "rain<turn> dog", " <turn>\n <turn>\n", "<a>  dog <a> "):
        assert backend_of(slow).encode([text], False)[0] == slow(text, add_special_tokens=False).input_ids
    assert backend_of(slow).encode([" <turn>\n"], False) == [[markers(slow)[" <turn>\n"]]]


def test_answers_of_another_vocabulary_are_no_history(marian, tmp_path):
    folder = tmp_path / "two"
    tiny_sentencepiece.marian(folder)
    shared = json.loads((folder / "vocab.json").read_text())
    special = marian.all_special_tokens
    own = {token: number if token in special else 100 + number for token, number in shared.items()}
    (folder / "target_vocab.json").write_text(json.dumps(own))
    files = (str(folder / name) for name in ("source.spm", "target.spm", "vocab.json"))
    apart = MarianTokenizer(*files, str(folder / "target_vocab.json"), separate_vocabs=True)
    encoder = DialogueTokenizer(apart, tiny_families.layout("opus-mt-en-de"), "\n", 64, 64)
    (example,) = encoder.examples(Episode((Turn("a cat", "eine katze"),)))
    assert example.context_ids.max() < 100 <= example.label_ids[:-1].min()
    with pytest.raises(DataError, match=r"2 turns \('eine katze' answers the first\).*kind: pairs"):
        encoder.examples(Episode((Turn("a cat", "eine katze"), Turn("a dog", "ein hund"))))


def test_exported_with_a_student(marian, tmp_path):
    copy.deepcopy(marian).save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    text = {"text": "the cat", "text_target": "die katze"}
    assert again(**text).labels == marian(**text).labels and again(**text).input_ids == marian(**text).input_ids
