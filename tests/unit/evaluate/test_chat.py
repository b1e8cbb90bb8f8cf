"""A conversation becomes contexts as training data does."""

from pathlib import Path

import pytest

from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.evaluate import chat
from distill_engine.evaluate.chat import ContextRules, Conversation, usual_rules
from distill_engine.evaluate.generate import Reply

TOKENIZER = Path(__file__).parents[3] / "recipes" / "demo" / "teacher"
RULES = ContextRules("\n", 40, history_end_token=True)


@pytest.fixture
def tokenizer():
    return load_tokenizer(str(TOKENIZER))


@pytest.fixture
def heard(monkeypatch):
    """Contexts that a model was asked about; it answers `yes`."""
    contexts = []

    def answer(model, tokenizer, inputs, settings):
        contexts.append(inputs.input_ids[0].tolist())
        return [Reply("yes", 2)]

    monkeypatch.setattr(chat, "replies", answer)
    return contexts


def test_persona_and_history_are_what_the_model_reads(tiny, tokenizer, heard):
    talk = Conversation(tiny.model("blenderbot"), tokenizer, RULES, {}, ["you are anna.", "you love soup."])
    talk.answer("hello")
    spoken = talk.answer("who are you?")
    assert tokenizer.decode(heard[0]) == "you are anna.\nyou love soup.\nhello__end__"
    assert tokenizer.decode(heard[1]) == "you are anna.\nyou love soup.\nhello\nyes\nwho are you?__end__"
    assert (spoken.text, spoken.tokens, spoken.context_tokens) == ("yes", 2, len(heard[1]))
    assert spoken.seconds >= 0
    talk.begin_again()
    talk.answer("hello")
    assert heard[2] == heard[0]
    talk.begin_again([])
    talk.answer("hello")
    assert tokenizer.decode(heard[3]) == "hello__end__"


def test_long_conversations_keep_their_end(tiny, tokenizer, heard):
    talk = Conversation(tiny.model("blenderbot"), tokenizer, RULES, {})
    for _ in range(20):
        spoken = talk.answer("what shall we do?")
    assert spoken.context_tokens == 40
    assert tokenizer.decode(heard[-1]).endswith("what shall we do?__end__")


def test_bart_contexts_are_wrapped(tiny, tokenizer, heard):
    Conversation(tiny.model("bart"), tokenizer, RULES, {}).answer("hello")
    assert heard[0][0] == tokenizer.bos_token_id and heard[0][-1] == tokenizer.eos_token_id


def test_rules_without_a_recipe(tiny):
    assert usual_rules(tiny.model("blenderbot")) == ContextRules("  ", 24, history_end_token=True)
    assert usual_rules(tiny.model("bart")).delimiter == "\n"
