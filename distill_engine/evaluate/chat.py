"""A conversation with a model, tokenised exactly as its training data was."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.tokens.tokenize import DialogueTokenizer
from distill_engine.evaluate.generate import replies
from distill_engine.families.lookup import family_of, shape_of
from distill_engine.models.generation_settings import special_tokens
from distill_engine.values import Tokens

LONGEST = 512  # tokens of a conversation for models that take any number
PERSONA_SEPARATOR = "\n"  # as the dialogue datasets put persona lines before the first thing said


@dataclass(frozen=True)
class ContextRules:
    """How what was said becomes a context, as a recipe's data section has it."""

    delimiter: str
    context_tokens: int
    history_end_token: bool


@dataclass(frozen=True)
class Spoken:
    """A reply, what it took, and how many tokens of the conversation the model saw."""

    text: str
    tokens: int
    seconds: float
    context_tokens: int


def usual_rules(model: PreTrainedModel) -> ContextRules:
    """Rules for a model without a recipe: those of its family's published models."""
    family = family_of(model.config)
    return ContextRules(family.delimiter, shape_of(model.config).positions or LONGEST, history_end_token=True)


class Conversation:
    """One model's side of a conversation; it remembers everything that was said."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        rules: ContextRules,
        settings: Mapping[str, Any],
        persona: Sequence[str] = (),
    ) -> None:
        """`settings`: arguments for `model.generate`; `persona`: lines that stand before the first thing said.

        Raises DataError for a tokenizer that is not a fast one, ValueError for a limit that leaves no room.
        """
        family = family_of(model.config)
        if family.inputs != "tokens":
            raise ValueError(f"models of the family {family.name} take {family.inputs}: nobody can type to them.")
        special = special_tokens(family, tokenizer, model.generation_config)
        layout = family.layout(special, rules.history_end_token)
        self._encoder = DialogueTokenizer(tokenizer, layout, rules.delimiter, rules.context_tokens, 1)
        self._model = model
        self._tokenizer = tokenizer
        self._settings = dict(settings)
        self._persona = list(persona)
        self._turns: list[Turn] = []

    def begin_again(self, persona: Sequence[str] | None = None) -> None:
        """Forget what was said; with another persona if one is given."""
        self._turns = []
        if persona is not None:
            self._persona = list(persona)

    def answer(self, said: str) -> Spoken:
        """The model's reply to `said`, which must not be blank; both are remembered."""
        text = said if self._turns else PERSONA_SEPARATOR.join([*self._persona, said])
        episode = Episode((*self._turns, Turn(text, "")))
        context = torch.tensor(self._encoder.examples(episode)[-1].context_ids, dtype=torch.long)[None]
        context = context.to(self._model.device)
        started = time.perf_counter()
        reply = replies(self._model, self._tokenizer, Tokens(context, torch.ones_like(context)), self._settings)[0]
        seconds = time.perf_counter() - started  # reading the reply back has waited for the device
        self._turns.append(Turn(text, reply.text))
        return Spoken(reply.text, reply.tokens, seconds, context.shape[1])
