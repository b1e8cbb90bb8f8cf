"""Replies of a model to a batch of contexts, with the model's own generation settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from distill_engine.data.tokens.layout import SequenceLayout
from distill_engine.families.lookup import family_of
from distill_engine.models.generation_settings import ONE_REPLY, Decoder, settle
from distill_engine.models.own_settings import GenerationError
from distill_engine.recipe.problem import did_you_mean
from distill_engine.values import Batch, Inputs

Prompts = Sequence[Sequence[int] | None]


@dataclass(frozen=True)
class Reply:
    """What a model said: the text, and how many tokens it took, end token included."""

    text: str
    tokens: int


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """`num_beams=4` texts -> settings; values are YAML.

    Raises GenerationError for a text without `=` or a name that transformers' GenerationConfig does not have.
    """
    known = sorted(name for name in GenerationConfig().to_dict() if not name.startswith("_"))
    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or name not in known:
            rule = "settings are name=value with a name of transformers' GenerationConfig."
            raise GenerationError(f"--generation {text!r}: {rule} {did_you_mean(name, known)}".rstrip())
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise GenerationError(f"--generation {text!r}: the value cannot be read as YAML. Quote it.") from error
    return settings


def own_settings(model: PreTrainedModel, new_tokens: int, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments for `model.generate`: what the rule of generation_settings changes in the model's own settings.

    new_tokens  limit of a reply where the model names none (transformers' default is 20)
    changed     settings that win over the model's own
    """
    return dict(settle(_own(model), Decoder.of(model.config, _own(model)), new_tokens, changed).changes)


def notes_on(model: PreTrainedModel, new_tokens: int, changed: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """What people should know of the same settings: what was capped."""
    return settle(_own(model), Decoder.of(model.config, _own(model)), new_tokens, changed).notes


def _own(model: PreTrainedModel) -> GenerationConfig:
    assert model.generation_config is not None, "sequence-to-sequence models have one"
    return model.generation_config


@contextmanager
def same_draws(device: torch.device, seed: int) -> Iterator[None]:
    """Within it settings that sample draw what belongs to the seed; random streams are left as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()  # not inference_mode: what a sharded model gathers in it could not be used outside it
def generate_ids(
    model: PreTrainedModel, inputs: Inputs, settings: Mapping[str, Any], prompts: Prompts | None = None
) -> Tensor:
    """[B, T] int64 generated ids, the decoder's start token left out, right-padded.

    prompts  of rows that begin otherwise than settings say (see `row_prompts`)
    Raises GenerationError with transformers' reason if it refuses.
    """
    family = family_of(model.config)
    try:
        if prompts is not None:
            settings = {**settings, **family.begins_rows(prompts, {**_own(model).to_dict(), **settings})}
        return family.generate(model, inputs.keywords, {**settings, **ONE_REPLY})
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GenerationError(f"transformers refuses to generate with {dict(settings)}: {reason}") from error


def spoken_lengths(ids: Tensor, pad_id: int, end_ids: Sequence[int]) -> Tensor:
    """[B] int64 tokens of each row of [B, T] generated ids, the end token included, padding after it not."""
    ended = torch.isin(ids, torch.tensor(list(end_ids), device=ids.device))
    ended[:, :1] = False  # replies may begin with the end token, where the decoder starts with it
    after = (ended.long().cumsum(dim=1) - ended.long()) > 0  # behind the first end token
    return (~after & (ids != pad_id)).sum(dim=1)


def row_prompts(batch: Batch, layout: SequenceLayout) -> Prompts | None:
    """What the decoder reads behind its start before each row's label, None for rows where that is what it is in the
    run; None where all rows are such."""
    usual = list(layout.decoder_prefix)
    rows = batch.decoder_input_ids[:, : len(usual)].tolist()
    found = [None if row == usual else row[1:] for row in rows]
    return found if any(found) else None


def replies(
    model: PreTrainedModel,
    tokenizer: Any,
    inputs: Inputs,
    settings: Mapping[str, Any],
    prompts: Prompts | None = None,
) -> list[Reply]:
    """A reply to each row of the inputs; raises GenerationError, and `prompts` are, as in `generate_ids`."""
    ids = generate_ids(model, inputs, settings, prompts)
    ends = settings.get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
    lengths = spoken_lengths(ids, tokenizer.pad_token_id, [ends] if isinstance(ends, int) else list(ends or []))
    return [
        Reply(decoded(tokenizer, row[:length]), length)
        for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)
    ]


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Plain text of token ids, special tokens and outer spaces left out."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()
