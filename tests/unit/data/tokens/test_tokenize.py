"""Token ids by ParlAI's rules, against an independent joining of entries and against ParlAI's own rows."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.errors import DataError
from distill_engine.data.tokens import tokenize
from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.data.tokens.tokenised import TokenisedDataset, TokenLimits, ids_without_row
from distill_engine.data.tokens.tokenize import DialogueTokenizer, load_tokenizer

END = 2


def plain(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def expected_contexts(tokenizer, episode: Episode, delimiter: str) -> list[list[int]]:
    """Every context as the rules say it, uncut and without special tokens."""
    contexts, history = [], []
    for turn in episode.turns:
        contexts.append([*history, *plain(tokenizer, turn.text)])
        for entry in (turn.text, turn.label):
            history = [*history, *plain(tokenizer, entry), *plain(tokenizer, delimiter)]
    return contexts


@pytest.mark.parametrize("delimiter", ["  ", "\n", ""])
@pytest.mark.parametrize("limit", [200, 9, 2])
def test_blenderbot_contexts_keep_their_last_ids_with_the_end_token(
    tokenizer, blenderbot_layout, episode, delimiter, limit
):
    examples = DialogueTokenizer(tokenizer, blenderbot_layout, delimiter, limit, 200).examples(episode)
    wanted = [([*ids, END])[-limit:] for ids in expected_contexts(tokenizer, episode, delimiter)]
    assert [example.context_ids.tolist() for example in examples] == wanted
    assert [e.label_ids.tolist() for e in examples] == [[*plain(tokenizer, t.label), END] for t in episode.turns]


@pytest.mark.parametrize("limit", [200, 9, 3])
def test_bart_contexts_keep_start_and_end_around_the_last_words(bare_tokenizer, bart_layout, episode, limit):
    examples = DialogueTokenizer(bare_tokenizer, bart_layout, "\n", limit, 200).examples(episode)
    wanted = [[0, *ids[-(limit - 2) :], 2] for ids in expected_contexts(bare_tokenizer, episode, "\n")]
    assert [example.context_ids.tolist() for example in examples] == wanted


def test_without_history_end_token_nothing_is_added(tokenizer, episode):
    layout = SequenceLayout(0, 1, 2, decoder_prefix=(1,))
    examples = DialogueTokenizer(tokenizer, layout, "\n", 5, 5).examples(episode)
    assert [e.context_ids.tolist() for e in examples] == [
        ids[-5:] for ids in expected_contexts(tokenizer, episode, "\n")
    ]


def test_labels_keep_their_first_ids_and_lose_the_end_token(tokenizer, blenderbot_layout, episode):
    examples = DialogueTokenizer(tokenizer, blenderbot_layout, "\n", 50, 3).examples(episode)
    for example, turn in zip(examples, episode.turns, strict=True):
        assert example.label_ids.tolist() == [*plain(tokenizer, turn.label), END][:3]


def test_history_ends_with_its_episode(tokenizer, blenderbot_layout, episode):
    encoder = DialogueTokenizer(tokenizer, blenderbot_layout, "\n", 50, 50)
    alone = encoder.examples(episode)
    together = encoder.tokenise([episode, episode])
    for index in range(6):
        np.testing.assert_array_equal(together.example(index).context_ids, alone[index % 3].context_ids)
        np.testing.assert_array_equal(together.example(index).label_ids, alone[index % 3].label_ids)


def test_entries_start_with_a_space_of_their_own_only_where_the_tokenizer_adds_one(tokenizer, bare_tokenizer):
    layout = SequenceLayout(0, 1, 2, decoder_prefix=(1,))
    spaced = DialogueTokenizer(tokenizer, layout, "\n", 50, 50)
    bare = DialogueTokenizer(bare_tokenizer, layout, "\n", 50, 50)
    assert spaced.encode(["hello"]) == spaced.encode([" hello"])
    assert bare.encode(["hello"]) != bare.encode([" hello"])
    assert tokenizer.convert_ids_to_tokens(spaced.encode(["a\nyour"])[0])[:2] == ["Ġa", "Ċ"]


@pytest.mark.parametrize("text", ["</s>", "a</s> b", "<s> hello <pad>", "<unk>", " </s>"])
def test_a_typed_special_token_is_plain_text(tokenizer, blenderbot_layout, text):
    encoder = DialogueTokenizer(tokenizer, blenderbot_layout, "\n", 50, 50)
    ids = encoder.encode([text])[0]
    assert not set(ids) & {0, 1, 2, 3}
    assert tokenizer.decode(ids).strip() == text.strip()
    example = encoder.examples(Episode((Turn(text, text),)))[0]
    assert example.context_ids.tolist() == [*ids, END]
    assert example.label_ids.tolist() == [*ids, END]
    assert END in tokenizer("</s>", add_special_tokens=False).input_ids  # the given tokenizer is as it was


@pytest.mark.parametrize(
    "add",
    [
        lambda t: t.add_special_tokens({"additional_special_tokens": ["<you>", "<partner>"]}),
        lambda t: t.add_special_tokens({"extra_special_tokens": ["<you>", "<partner>"]}),
        lambda t: t.add_tokens(["<you>", "<partner>"], special_tokens=True),
        lambda t: t.add_tokens(["<you>", "<partner>"]),
    ],
    ids=["additional", "extra", "special", "plain"],
)
@pytest.mark.parametrize("saved", [False, True])
def test_markers_stay_one_token_and_roles_stay_plain_text(tokenizer_folder, blenderbot_layout, tmp_path, add, saved):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    add(tokenizer)
    if saved:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = load_tokenizer(str(tmp_path))
    you, partner = tokenizer.convert_tokens_to_ids(["<you>", "<partner>"])
    encoder = DialogueTokenizer(tokenizer, blenderbot_layout, "<partner>", 50, 50)
    ids = encoder.encode(["<you>hello <partner> a</s>"])[0]
    assert (ids[0], ids.count(you), ids.count(partner), set(ids) & {0, 1, 2, 3}) == (you, 1, 1, set())
    first, second = encoder.examples(Episode((Turn("<you> a", "b"), Turn("c", "d"))))
    assert first.context_ids[0] == you and second.context_ids.tolist().count(partner) == 2  # the delimiter is one
    assert tokenizer("<you>", add_special_tokens=False).input_ids == [you]  # the given tokenizer is as it was
    assert tokenizer.backend_tokenizer.get_added_tokens_decoder()[END].special
    other = DialogueTokenizer(load_tokenizer(str(tokenizer_folder)), blenderbot_layout, "<partner>", 50, 50)
    assert other.identity != encoder.identity


def test_end_tokens_truncation_and_padding_of_the_tokenizer_itself_are_off(tokenizer_folder, blenderbot_layout):
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(str(tokenizer_folder))
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    backend.enable_truncation(4)
    backend.enable_padding(length=40)
    encoder = DialogueTokenizer(tokenizer, blenderbot_layout, "\n", 50, 50)
    example = encoder.examples(Episode((Turn("hello there , do you mend clocks ?", "yes i do ."),)))[0]
    assert example.context_ids.tolist().count(END) == 1 and example.label_ids.tolist().count(END) == 1
    assert len(example.context_ids) > 5 and 0 not in example.context_ids


def test_an_example_after_nothing_at_all_is_left_out_but_stays_history(tokenizer, blenderbot_layout, caplog):
    dataset = DialogueTokenizer(tokenizer, blenderbot_layout, "\n", 50, 50).tokenise(
        [Episode((Turn("", "hello"), Turn("", ""), Turn("yes", "nice")))]
    )
    assert (len(dataset), dataset.skipped) == (2, 1)
    assert "left out" in caplog.text
    wanted = [*plain(tokenizer, "hello"), *plain(tokenizer, "\n")]
    assert dataset.example(0).context_ids.tolist() == [*plain(tokenizer, "\n"), *wanted, END]
    assert dataset.example(0).label_ids.tolist() == [END]


def test_lengths_without_building_examples(tokenizer, bart_layout, episode):
    dataset = DialogueTokenizer(tokenizer, bart_layout, "\n", 12, 4).tokenise([episode] * 3)
    examples = [dataset.example(index) for index in range(len(dataset))]
    assert dataset.context_lengths.tolist() == [len(example.context_ids) for example in examples]
    assert dataset.label_lengths.tolist() == [len(example.label_ids) for example in examples]
    assert dataset.largest_id == max(int(dataset.tokens.max()), 2)
    assert dataset.tokens.dtype == np.int32


texts = st.text(alphabet=st.sampled_from("ab .\n</s>é😀"), max_size=12)


@given(st.lists(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_text_gives_what_the_rules_say(tokenizer, blenderbot_layout, dialogues):
    episodes = [Episode(tuple(Turn(*pair) for pair in dialogue)) for dialogue in dialogues]
    dataset = DialogueTokenizer(tokenizer, blenderbot_layout, "  ", 11, 6).tokenise(episodes)
    wanted = [
        (([*context, END])[-11:], [*plain(tokenizer, turn.label), END][:6])
        for episode in episodes
        for context, turn in zip(expected_contexts(tokenizer, episode, "  "), episode.turns, strict=True)
        if context
    ]
    assert [(e.context_ids.tolist(), e.label_ids.tolist()) for e in map(dataset.example, range(len(dataset)))] == wanted


def test_limits_leave_room_for_a_word(tokenizer, bart_layout):
    with pytest.raises(ValueError, match=r"context_tokens is 2.*at least 3"):
        DialogueTokenizer(tokenizer, bart_layout, "\n", 2, 5)
    with pytest.raises(ValueError, match="label_tokens is 0"):
        DialogueTokenizer(tokenizer, bart_layout, "\n", 5, 0)


def test_layouts_of_both_families(blenderbot_layout, bart_layout):
    assert blenderbot_layout == SequenceLayout(0, 1, 2, (), (2,), (1,), 0)
    assert bart_layout == SequenceLayout(1, 0, 2, (0,), (2,), (2, 0), 1)
    assert (blenderbot_layout.decoder_length(7), bart_layout.decoder_length(7)) == (7, 8)
    with pytest.raises(ValueError, match="line up"):
        SequenceLayout(0, 1, 2, decoder_prefix=(2, 1), label_pad_prefix=0)


def test_tokenizers_that_cannot_be_loaded(tmp_path, tokenizer_folder):
    for name in (str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(DataError, match=r"No tokenizer could be loaded"):
            load_tokenizer(name)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    (tmp_path / "tokenizer_config.json").write_bytes((tokenizer_folder / "tokenizer_config.json").read_bytes())
    with pytest.raises(DataError, match=r"No tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


def test_sentencepiece_models_without_the_package_that_reads_them(tmp_path, monkeypatch):
    (tmp_path / "spiece.model").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "marian"}')
    monkeypatch.setattr(tokenize, "find_spec", lambda name: None)  # as if sentencepiece were not installed
    with pytest.raises(DataError, match=r"models \(spiece.model\).*pip install 'distill-engine\[sentencepiece\]'"):
        load_tokenizer(str(tmp_path))


def test_code_that_comes_with_a_tokenizer_is_not_run_and_nobody_is_asked(tmp_path, tokenizer_folder, monkeypatch):
    folder = tmp_path / "foreign"
    shutil.copytree(tokenizer_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Foreign", "auto_map": {"AutoTokenizer": [None, "foreign.Foreign"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    code = f"open({str(tmp_path / 'pwned')!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as Foreign\n"
    (folder / "foreign.py").write_text(code)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked at the terminal"))
    with pytest.raises(DataError, match=r"No tokenizer could be loaded.*ValueError: 'The repository"):
        load_tokenizer(str(folder))
    assert not (tmp_path / "pwned").exists()


def test_a_too_long_context_keeps_its_first_or_its_last_tokens(tokenizer, bart_layout):
    long = Episode((Turn("do you mend clocks when it rains outside ?", "yes"),))
    encoder = DialogueTokenizer(tokenizer, bart_layout, "\n", 6, 4)
    words = encoder.encode([long.turns[0].text])[0]
    last, first = (encoder.keeping(which).examples(long)[0].context_ids.tolist() for which in ("last", "first"))
    start, end = list(bart_layout.context_prefix), list(bart_layout.context_suffix)
    assert (last, first) == ([*start, *words[-4:], *end], [*start, *words[:4], *end])


def test_models_with_a_table_for_each_side_are_asked_for_rows_of_each(blenderbot_layout):
    bounds = np.array([[0, 2, 2, 3], [3, 3, 3, 5], [5, 6, 6, 7]])
    tokens = np.array([30, 20, 11, 5, 6, 21, 12], np.int32)
    dataset = TokenisedDataset(tokens, bounds, blenderbot_layout, TokenLimits(8, 8))
    assert dataset.largest_ids == (30, 12)
    assert ids_without_row([dataset], 31, 13) is None and ids_without_row([dataset], 31, 31) is None
    assert ids_without_row([dataset], 30, 31) == ("encoder's embedding", 30, 30)
    assert ids_without_row([dataset], 31, 12) == ("decoder's embedding", 12, 12)
    assert ids_without_row([dataset], 30, 30) == ("embedding", 30, 30)
