"""The demo dialogues: repeatable, disjoint splits, entropy that depends on who speaks, and their tokenizer."""

from __future__ import annotations

import hashlib
import math
import runpy
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from distill_engine.data.corpora import demo_world as world
from distill_engine.data.corpora.demo import DEFAULT_EXAMPLES, Draw, Persona, demo_episodes
from distill_engine.data.episodes import Episode

DEMO_FOLDER = Path(__file__).resolve().parents[4] / "recipes" / "demo"


def persona_lines(episodes: list[Episode]) -> set[str]:
    return {episode.turns[0].text.split("\n")[0] for episode in episodes}


def digest(episodes: list[Episode]) -> str:
    text = "\x00".join(f"{turn.text}\x01{turn.label}" for episode in episodes for turn in episode.turns)
    return hashlib.sha256(text.encode()).hexdigest()


def entropy(items: list[str]) -> float:
    counts = Counter(items)
    return -sum(n / len(items) * math.log(n / len(items)) for n in counts.values())


def test_same_seed_same_dialogues_on_every_python() -> None:
    # The digest is part of the promise: committed teachers and tokenizers were made from these dialogues.
    assert digest(demo_episodes("train", 500, 0)) == "6290300bceb7b244e1da745bdc6ec4cfecba16e984f7492fe29697aeff6aff23"


def test_seeds_and_splits_give_different_dialogues() -> None:
    seen = {digest(demo_episodes(split, 50, seed)) for split in ("train", "valid", "test") for seed in (0, 1)}
    assert len(seen) == 6


@pytest.mark.parametrize("other_seed", [0, 7])
def test_nobody_is_in_two_splits_whatever_the_seed(other_seed: int) -> None:
    train = persona_lines(demo_episodes("train", 5_000, 0))
    valid = persona_lines(demo_episodes("valid", 1_000, other_seed))
    test = persona_lines(demo_episodes("test", 1_000, other_seed))
    assert not train & valid
    assert not train & test
    assert not valid & test


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 1_001])
def test_count_is_the_number_of_labelled_turns_and_longer_lists_start_with_shorter_ones(count: int) -> None:
    turns = [turn for episode in demo_episodes("train", count, 3) for turn in episode.turns]
    longer = [turn for episode in demo_episodes("train", count + 5, 3) for turn in episode.turns]
    assert len(turns) == count
    assert longer[:count] == turns


def test_no_count_gives_the_default_number_of_examples() -> None:
    assert sum(len(episode.turns) for episode in demo_episodes("valid")) == DEFAULT_EXAMPLES["valid"]


def test_an_episode_opens_with_a_persona_and_has_two_or_three_different_turns() -> None:
    for episode in demo_episodes("train", 2_000, 0)[:-1]:
        first, *others = episode.turns
        assert first.text.startswith("you are ")
        assert first.text.count("\n") == 1
        assert 1 <= len(others) <= 2
        assert all("\n" not in turn.text for turn in others)
        assert all(turn.label and turn.label == turn.label.strip() for turn in episode.turns)
        assert len({turn.text for turn in episode.turns}) == len(episode.turns)


def test_how_a_reply_begins_depends_on_the_temper() -> None:
    begins: dict[str, list[str]] = {temper: [] for temper in world.TEMPERS}
    for episode in demo_episodes("train", 20_000, 0):
        temper = next(t for t in world.TEMPERS if f" a {t} " in episode.turns[0].text)
        begins[temper].extend(turn.label.split(" ")[0] for turn in episode.turns)
    share = {temper: Counter(words)["hmpf."] / len(words) for temper, words in begins.items()}
    assert share["grumpy"] == pytest.approx(6 / 17, abs=0.03)
    assert all(value == 0 for temper, value in share.items() if temper != "grumpy")
    # Not fixed within a temper, and known better with it than without: both are what soft targets teach.
    assert all(entropy(words) > 1 for words in begins.values())
    together = [word for words in begins.values() for word in words]
    given_temper = sum(len(words) / len(together) * entropy(words) for words in begins.values())
    assert entropy(together) - given_temper > 0.3


def test_what_a_reply_says_is_drawn_with_odds_that_depend_on_temper_and_trade() -> None:
    goods = world.TRADES["baker"]
    draw = Draw("test")
    shares = {
        temper: [Counter(draw.taste(goods, temper) for _ in range(4_000))[item] / 4_000 for item in goods]
        for temper in ("cheerful", "shy")
    }
    assert shares["cheerful"] == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15], abs=0.03)
    assert shares["shy"] == pytest.approx([4 / 15, 2 / 15, 1 / 15, 8 / 15], abs=0.03)


def test_sums_and_ages_are_right() -> None:
    checked = 0
    for episode in demo_episodes("train", 6_000, 5):
        age = int(episode.turns[0].text.split(" of ")[1].split(".")[0])
        for turn in episode.turns:
            if "how old will you be in " in turn.text:
                years = int(turn.text.split(" be in ")[1].split(" ")[0])
                assert str(age + years) in turn.label
                checked += 1
            elif " and lose " in turn.text or " and find " in turn.text:
                words = turn.text.split("i have ")[1].replace(".", "").split(" ")
                total = int(words[0]) + int(words[4] if words[2] == "and" else 0) * (1 if words[3] == "find" else -1)
                assert world.NUMBERS[total] in turn.label
                checked += 1
    assert checked > 500


def test_a_person_never_loves_and_hates_the_same_food() -> None:
    draw = Draw("food")
    assert all(person.loves != person.hates for person in (Persona.drawn(draw) for _ in range(2_000)))


def test_tokenizer_folder_has_blenderbot_ids_and_adds_nothing_by_itself() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER / "tokenizer")
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    assert tokenizer("").input_ids == []
    assert not {0, 1, 2, 3} & set(tokenizer("you are mira, a shy baker of 34.").input_ids)


def test_tokenizer_gives_every_text_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER / "tokenizer")
    texts = [turn.text for episode in demo_episodes("valid", 200, 0) for turn in episode.turns]
    for text in [*texts, "Ünïcode, 2 dogs .\nand  spaces ", "鳥 🙂"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_tokenizer_reads_digits_one_by_one() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER / "tokenizer")
    assert "".join(tokenizer.convert_ids_to_tokens(tokenizer("1976").input_ids)) == "1976"
    assert len(tokenizer("1976").input_ids) == 4


def test_script_makes_the_committed_tokenizer_again() -> None:
    made = runpy.run_path(str(DEMO_FOLDER / "make_tokenizer.py"))["trained_tokenizer"]()
    committed = AutoTokenizer.from_pretrained(DEMO_FOLDER / "tokenizer")
    assert made.get_vocab() == committed.get_vocab()
    text = demo_episodes("test", 1, 0)[0].turns[0].text
    assert made(text).input_ids == committed(text).input_ids
