"""One rule for how a model generates, wherever it does: samples, teacher replies, evaluation, latency, chat, export.

A model's own settings are those that transformers takes: `generation_config.json`, and where there is none (or none
that can be read) what `config.json` holds. They are completed by what a family's decoder takes for granted in training:

- a token that is never predicted in training (a start token) is never said;
- where the decoder reads END START before a label, START follows END unless another token is forced there;
- a reply is limited, by its model's settings or else by the caller, and never longer than the position table.

A student's settings are its teacher's, begun as its decoder was trained; they are exported as they are used here. So
`generate()` of plain transformers says on an export what every other path says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import GenerationConfig

from distill_engine.data.tokens.layout import SpecialTokens
from distill_engine.families.lookup import family_of, start_of
from distill_engine.families.protocol import Family
from distill_engine.models.own_settings import GENERATION_FILE, GenerationError, OwnSettings, first_line

_METADATA = ("_from_model_config", "transformers_version")
# one text for one context, whatever a model's settings say; no token depends on them
ONE_REPLY = {
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": False,
}


def obey(config: GenerationConfig, told: Mapping[str, Any]) -> None:
    """Change settings; its own `update` passes over those that only some models have, in silence."""
    for name, value in told.items():
        setattr(config, name, value)


@dataclass(frozen=True)
class Decoder:
    """What settings must fit.

    prefix      what the decoder reads before a label in training    never  the token that it never predicts
    positions   tokens that fit, None: any
    copied      teacher layers that its own are copies of, where they are
    """

    family: Family
    prefix: tuple[int, ...]
    never: int | None
    positions: int | None
    vocabulary: int
    end_id: int
    copied: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Any, own: GenerationConfig) -> Decoder:
        """From a Hugging Face configuration and a model's generation settings."""
        family = family_of(config)
        shape = family.shape(config.to_dict())
        layout = family.layout(special_tokens(family, config, own))
        never = family.masked_id(start_of(config))
        return cls(family, layout.decoder_prefix, never, shape.positions, shape.vocab, layout.end_id)

    @property
    def second_read(self) -> int | None:
        """What follows it in every reply, where the decoder is not trained to predict that."""
        return self.prefix[1] if len(self.prefix) > 1 and not self.family.prompts else None

    @property
    def taken(self) -> int:
        """Positions that are taken when `generate` begins to count new tokens."""
        return len(self.prefix) if self.family.prompts else 1


def special_tokens(
    family: Family, known: Any, own: GenerationConfig | None, config: Mapping[str, Any] | None = None
) -> SpecialTokens:
    """Of a tokenizer or a configuration (`known`) and a model's generation settings; what the decoder starts with may
    stand in its config.json alone."""
    start = None if own is None else own.decoder_start_token_id
    if start is None:
        start = (config or {}).get("decoder_start_token_id", getattr(known, "decoder_start_token_id", None))
    return SpecialTokens(
        pad=int(known.pad_token_id),
        end=_ids(known.eos_token_id)[0],
        start=start_of(known),
        decoder_start=start,
        forced=None if own is None else own.forced_bos_token_id,
        source=_language(known),
        prompt=() if own is None else family.prompt(own.to_dict()),
    )


def _language(tokenizer: Any) -> int | None:
    """The id of the language that a tokenizer puts around contexts."""
    code = getattr(tokenizer, "src_lang", None)
    if code is None:
        return None
    tokens = getattr(tokenizer, "lang_code_to_token", {})  # where `__de__` is the token of `de`
    return int(tokenizer.convert_tokens_to_ids(tokens.get(code, code)))


@dataclass(frozen=True)
class Settled:
    """The settings that hold.

    values   all settings, by name
    changes  of a model's own settings, by name: exactly what has to be told to its `generate`
    reasons  of a change that nobody asked for, by name
    notes    sentences about those that override what the model's own settings say, and about what may surprise
    source   what the others are from
    """

    values: Mapping[str, Any]
    changes: Mapping[str, Any]
    reasons: Mapping[str, str]
    notes: tuple[str, ...]
    source: str = "the model"

    def config(self) -> GenerationConfig:
        """As transformers keeps them. Raises GenerationError for values that it refuses."""
        given = {name: value for name, value in self.values.items() if value is not None}
        try:
            config: Any = GenerationConfig.from_dict(given)
        except (ValueError, TypeError) as error:
            raise GenerationError(f"transformers refuses generation settings: {first_line(error)}") from error
        # as one that was read: of those transformers saves also values that have no effect (a temperature without
        # sampling), which it refuses to save of one that was changed
        config._original_object_hash = hash(config)
        return config


def settle(own: GenerationConfig, decoder: Decoder, new_tokens: int, asked: Mapping[str, Any] | None = None) -> Settled:
    """The settings of a finished model.

    new_tokens  limit of a reply where neither the model nor `asked` has one (transformers' own default is 20)
    asked       settings that win over the model's own
    """
    return _Settling(own, decoder, asked or {}).finished(new_tokens)


def settle_student(own: OwnSettings, decoder: Decoder, new_tokens: int) -> Settled:
    """A student's settings, from its teacher's and from how its decoder is trained: what is exported.

    Raises GenerationError for tokens that do not exist, and for settings that transformers refuses.
    """
    settling = _Settling(own.config, decoder, {})
    settling.begin_as_trained()
    settling.fit_layers()
    settled = settling.finished(new_tokens)
    _require_tokens(settled.values, decoder)
    settled.config()
    remark = () if not own.remark else (f"{GENERATION_FILE} is not used, {own.source} is: {own.remark}",)
    return replace(settled, notes=(*remark, *settled.notes), source=own.source)


class _Settling:
    """The rule, one setting after the other."""

    def __init__(self, own: GenerationConfig, decoder: Decoder, asked: Mapping[str, Any]) -> None:
        self._own = {name: value for name, value in own.to_dict().items() if name not in _METADATA}
        self._decoder = decoder
        self._values = {**self._own, **asked}
        self._reasons: dict[str, str] = {}
        self._notes: list[str] = []
        for longer, shorter in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if shorter in asked and longer not in asked:
                self._values[longer] = None  # it would win over what was asked

    def begin_as_trained(self) -> None:
        """The decoder starts with the token that it starts with in training."""
        first, given = self._decoder.prefix[0], self._values.get("decoder_start_token_id")
        if given != first:
            self._set("decoder_start_token_id", first, "the decoder is trained to start with it")
            if given is not None:
                self._notes.append(
                    f"decoder_start_token_id is {first}, not the teacher's {given}: students' decoders are trained "
                    f"after {first} (the decoder reads {list(self._decoder.prefix)} before a reply). A "
                    "teacher that was trained after another token is worse here than it could be; "
                    "`valid/teacher_ppl` tells"
                )
        forced = self._values.get("forced_bos_token_id")
        second = self._decoder.second_read
        if second is not None and forced not in (None, second):
            self._notes.append(
                f"forced_bos_token_id is {forced}, the teacher's: replies begin with it, but students are trained on "
                f"replies that begin after {second}"
            )

    def fit_layers(self) -> None:
        """What names layers of the teacher's."""
        for name, value in self._decoder.family.fitted(self._values, self._decoder.copied).items():
            self._set(name, value, "the student has other layers than the teacher")

    def finished(self, new_tokens: int) -> Settled:
        """What is known of the family and the table of positions, in that order."""
        self._never_said()
        self._after_end()
        if self._values.get("max_length") is None and self._values.get("max_new_tokens") is None:
            self._set("max_new_tokens", new_tokens, "no limit is named")
        self._fit_positions()
        missing = object()
        changes = {n: v for n, v in self._values.items() if self._own.get(n, missing) != v}
        return Settled(self._values, changes, self._reasons, tuple(self._notes))

    def _never_said(self) -> None:
        """Together with what the settings suppress already."""
        start = self._decoder.never
        if start is None:
            return
        self._set(
            "suppress_tokens",
            sorted({*_ids(self._values.get("suppress_tokens")), start}),
            f"token {start} is never predicted in training",
        )
        if self._values.get("forced_bos_token_id") == start:
            self._set("forced_bos_token_id", None, f"token {start} is never predicted in training")
            self._notes.append(f"forced_bos_token_id {start} is left out: it is never predicted in training")

    def _after_end(self) -> None:
        decoder = self._decoder
        begins_with = self._values.get("decoder_start_token_id")
        if decoder.second_read is None or begins_with not in (None, decoder.prefix[0]):
            return
        if self._values.get("forced_bos_token_id") is None:
            why = f"what follows token {decoder.prefix[0]} is not learnt"
            self._set("forced_bos_token_id", decoder.second_read, why)

    def _fit_positions(self) -> None:
        """The decoder's own first token takes a position, too."""
        most = self._decoder.positions
        limits = {} if most is None else {"max_length": most, "max_new_tokens": most - self._decoder.taken}
        for name, limit in limits.items():
            self._cap(name, limit, f"the position table has {most} rows")
        longest = self._values.get("max_new_tokens")
        longest = int(self._values["max_length"]) - 1 if longest is None else int(longest)
        for name, limit in {"min_length": longest + 1, "min_new_tokens": longest}.items():
            self._cap(name, limit, f"a reply has at most {longest} tokens")

    def _cap(self, name: str, limit: int, why: str) -> None:
        value = self._values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise GenerationError(f"{name} is {value!r}. It has to be a number of tokens.")
        if value is not None and value > limit:
            self._set(name, limit, why)
            self._notes.append(f"{name} is {limit}, not {value}: {why}")

    def _set(self, name: str, value: Any, why: str) -> None:
        if self._values.get(name) != value:
            self._values[name] = value
            self._reasons[name] = why


def _require_tokens(values: Mapping[str, Any], decoder: Decoder) -> None:
    """Raises GenerationError for tokens that do not exist."""
    for name in ("forced_bos_token_id", "forced_eos_token_id", "eos_token_id", "decoder_start_token_id"):
        ids = values.get(name)
        if any(not 0 <= one < decoder.vocabulary for one in _ids(ids)):
            raise GenerationError(
                f"{name} is {ids}, but the vocabulary has {decoder.vocabulary} tokens. Correct it in the teacher's "
                f"{GENERATION_FILE}."
            )


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(one) for one in value] if isinstance(value, list | tuple) else [int(value)]


def shown_settings(settled: Settled) -> list[tuple[str, str, str]]:
    """(name, value, where it is from) of every setting that holds, in alphabetical order."""
    held = {name: value for name, value in settled.values.items() if value is not None}
    defaults = {"num_beams": 1, "do_sample": False}
    source = settled.source
    rows = [(n, json.dumps(v, default=str), settled.reasons.get(n, source)) for n, v in held.items()]
    rows += [(n, json.dumps(v), "transformers' default") for n, v in defaults.items() if n not in held]
    return sorted(rows)
