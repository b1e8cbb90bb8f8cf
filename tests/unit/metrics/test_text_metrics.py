"""Metrics of replies against independent computation: worked by hand, sacrebleu itself, counting in a set."""

import math

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from distill_engine.metrics.replies import Answered, length_groups, reply_metrics, reply_values, values_by_length
from distill_engine.metrics.text.accuracy import exact_match
from distill_engine.metrics.text.bleu import METRIC, bleu_signature
from distill_engine.metrics.text.f1 import f1
from distill_engine.metrics.text.interdistinct import FIRST, SECOND
from distill_engine.metrics.text.repetition import repetition
from distill_engine.metrics.text.words import normalised
from distill_engine.registry import load

bleu = METRIC.value


@pytest.mark.parametrize(
    "text, words",
    [
        ("The cat, a DOG and an owl!", ["cat", "dog", "and", "owl"]),
        ("i don't know", ["i", "don", "t", "know"]),
        ("well-known (theatre)", ["well", "known", "theatre"]),  # `the` inside a word stays
        ("a.an.the", []),  # punctuation goes first, so that these are articles
        ("  \t\n ", []),
        ("naïve café", ["naïve", "café"]),
        ("_under_[score]`^~", ["under", "score"]),
    ],
)
def test_words_are_compared_as_parlai_does(text, words):
    assert normalised(text) == words


@pytest.mark.parametrize(
    "reply, references, value",
    [
        ("i like cats", ["i like cats"], 1.0),
        ("i like cats", ["I like the cats!"], 1.0),
        ("i like cats", ["you like dogs"], 1 / 3),  # 1 common of 3 and 3
        ("like like like", ["i like it"], 1 / 3),  # a word counts as often as both have it
        ("i like big cats a lot", ["cats"], 2 * (1 / 5) * 1 / (1 / 5 + 1)),  # precision 1/5, recall 1
        ("hello", ["bye", "hello there"], 2 / 3),  # the best of several
        ("", ["hello"], 0.0),
        ("the", ["the"], 0.0),  # nothing is left to compare
        ("hello", [], 0.0),
    ],
)
def test_f1_worked_by_hand(reply, references, value):
    assert f1(reply, references) == pytest.approx(value)


words = st.text(alphabet="abt he.,'", max_size=20)


@given(words, words)
def test_f1_is_precision_and_recall(reply, reference):
    said, right = normalised(reply), normalised(reference)
    common = 0
    for word in set(said):
        common += min(said.count(word), right.count(word))
    expected = 0.0
    if common:
        precision, recall = common / len(said), common / len(right)
        expected = 2 * precision * recall / (precision + recall)
    assert f1(reply, [reference]) == pytest.approx(expected)
    assert f1(reply, [reference]) == pytest.approx(f1(reference, [reply]))


def test_exact_match_forgives_case_punctuation_and_articles():
    assert exact_match("The cat.", ["a dog", "cat"]) == 1.0
    assert exact_match("cats", ["cat"]) == 0.0


def test_bleu_is_sacrebleus():
    said = ["the cat sat on the mat .", "there is a dog in here", "yes"]
    reference = ["the cat sat on a mat .", "there is a big dog in here", "no"]
    assert bleu(said, [[one] for one in reference]) == sacrebleu.corpus_bleu(said, [reference]).score
    assert 20 < bleu(said, [[one] for one in reference]) < 90
    two = [["a cat sat on the mat .", reference[0]], [reference[1]], ["yes"]]
    expected = sacrebleu.corpus_bleu(said, [[row[0] for row in two], [reference[0], None, None]]).score
    assert bleu(said, two) == expected > bleu(said, [[one] for one in reference])


def test_bleu_worked_by_hand():
    """4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours; no brevity penalty at equal length."""
    expected = 100 * math.exp(sum(math.log(p) for p in (4 / 5, 3 / 4, 2 / 3, 1 / 2)) / 4)
    assert bleu(["one two three four six"], [["one two three four five"]]) == pytest.approx(expected)


def test_bleu_says_how_it_was_computed():
    assert "tok:13a" in bleu_signature() and sacrebleu.__version__ in bleu_signature()


def test_distinct_counts_over_all_replies():
    said = ["i like cats", "i like the dogs"]
    assert FIRST.value(said) == pytest.approx(4 / 6)
    assert SECOND.value(said) == pytest.approx(3 / 4)
    assert SECOND.value(["hi"]) == 0.0


@pytest.mark.parametrize(
    "reply, value",
    [("i am i am i am", 1 - 2 / 4), ("one two three four", 0.0), ("no no no no no", 1 - 1 / 3), ("a b", 0.0)],
)
def test_repetition_is_the_share_of_triples_said_before(reply, value):
    assert repetition(reply) == pytest.approx(value)


def test_all_together():
    said = [Answered("i like cats", 4, ["i like cats"]), Answered("", 1, ["hello there"])]
    values = reply_metrics(said)
    assert values["f1"] == values["accuracy"] == values["empty"] == 0.5
    assert values["reply_tokens"] == 2.5 and values["reference_words"] == 2.5 and values["unique"] == 1.0
    assert values["interdistinct-1"] == 1.0 and values["repetition"] == 0.0
    assert reply_metrics([]) == {}


def test_over_tasks_values_are_means_and_pooled_ones_of_all_replies():
    pets, sums = [Answered("i like cats", 4, ["i like cats"])] * 3, [Answered("i like dogs", 4, ["two"])]
    values = reply_values({"pets": pets, "sums": sums, "empty": []})
    assert (values["pets/f1"], values["sums/f1"], values["f1"]) == (1.0, 0.0, 0.5)
    assert values["interdistinct-1"] == 4 / 12 and values["pets/interdistinct-1"] == 3 / 9
    assert not [name for name in values if name.startswith("empty/")]
    assert reply_values({"empty": []}) == {}


# -- summaries, translations, transcripts --------------------------------------------------------------------------


def value_of(name, texts, references):
    metric = load("metrics", name)
    return math.nan if metric.missing() else metric.value(texts, references)


@pytest.mark.parametrize(
    "name, text, references, value",
    [
        ("rouge_1", "the cat sat", ["the cat ran off"], 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
        ("rouge_2", "the cat sat", ["the cat ran off"], 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("rouge_l", "cats the sat", ["the cat sat", "no"], 2 / 3),  # stemmed; the better of two references
        ("wer", "The cat, sat!", ["the cat sat on"], 1 / 4),  # one word is missing; marks and case are nothing
        ("wer_english", "uh it's twenty two, Mister Smith", ["It is 22 Mr. Smith"], 0.0),
        ("wer_english", "it is a cat", ["it's a hat"], 1 / 4),
        ("wer_english", "the color of the airplane", ["The colour of the aeroplane, organised"], 1 / 6),
        ("wer", "the color of it", ["the colour of it"], 1 / 4),
        ("wer_english", "the cause of it", ["because of it"], 2 / 3),
        ("cer", "cet", ["cat"], 1 / 3),
        ("token_error_rate", "The cat, sat", ["the cat sat"], 2 / 3),  # case, and a mark too many
        ("wer", "a b c d", ["a"], 3.0),  # more errors than words
        ("wer", "a b", [""], 2.0),
        ("wer", "x", ["a b c", "x y"], 1 / 2),  # the nearer reference
    ],
)
def test_worked_by_hand(name, text, references, value):
    assert value_of(name, [text], [references]) == pytest.approx(value)


def test_errors_are_pooled_and_characters_are_sacrebleus():
    assert value_of("wer", ["a", "x x x"], [["b"], ["x x x"]]) == pytest.approx(1 / 4)
    texts, references = ["der hund bellt", "ja"], [["der hund hat gebellt"], ["ja doch"]]
    expected = sacrebleu.CHRF(word_order=2).corpus_score(texts, [[one[0] for one in references]]).score
    assert value_of("chrf", texts, references) == pytest.approx(expected)


def test_without_its_library_a_metric_is_left_out_and_says_so(monkeypatch):
    everything = set(reply_metrics([Answered("a b", 2, ["a b"])]))
    assert {"rouge_l", "wer", "chrf"} <= everything
    monkeypatch.setattr("distill_engine.metrics.protocol.find_spec", lambda name: None)
    assert "pip install 'distill-engine[metrics]'" in load("metrics", "wer").missing()
    assert "the package jiwer and whisper_normalizer." in load("metrics", "wer_english").missing()
    assert set(reply_metrics([Answered("a b", 2, ["a b"])])) == everything - {
        "rouge_1", "rouge_2", "rouge_l", "wer", "wer_english", "cer", "token_error_rate", "spbleu"
    }  # fmt: skip


def test_values_by_input_length():
    answered = [(length, Answered("yes" if length > 2 else "", 1, ["yes"])) for length in (1, 2, 3, 4, 5, 6)]
    values = values_by_length(answered)
    assert length_groups(values) == ["input 1-2 words", "input 3-4 words", "input 5-6 words"]
    assert (values["input 1-2 words/f1"], values["input 5-6 words/f1"]) == (0.0, 1.0)
    assert values_by_length(answered[:2]) == {}
