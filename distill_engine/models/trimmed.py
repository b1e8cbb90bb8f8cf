"""A model folder with fewer rows in its vocabulary: embeddings, output and bias; everything else as it is.

Softmax over the rows that are left is the whole model's distribution, renormalised over them: exp(logit) / sum of the
kept exp(logit). What a term or a kernel then compares needs to know nothing of the rows that are gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig

from distill_engine.families.lookup import shape_of
from distill_engine.models.classes import config_of, model_class
from distill_engine.models.loading import parameter_name
from distill_engine.models.weight_files import WeightFiles, WeightsError

_SINGLE = ("_token_id", "_token_ids")
_TABLES = "_to_id"  # of languages and tasks
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids")


def named_ids(folder: Path) -> set[int]:
    """Token ids that a folder's configuration and generation settings name, except those they forbid."""
    found: set[int] = set()
    for one in _settings(folder):
        for name, value in one.to_dict().items():
            if name.endswith(_SINGLE) and value is not None:
                found |= {int(number) for number in (value if isinstance(value, list) else [value])}
            if name.endswith(_TABLES) and isinstance(value, dict):
                found |= set(map(int, value.values()))
    return {number for number in found if number >= 0}


def write_trimmed(source: Path, target: Path, kept: Sequence[int]) -> None:
    """`source` with the rows `kept` alone (old ids, ascending), in the folder `target`, which is there already.

    Files that hold no table of the vocabulary are not copied: links point at them.

    Raises WeightsError for a model whose two sides have vocabularies of different sizes.
    """
    config: Any = config_of(source)
    before = _shapes(config)
    rows, new = shape_of(config).vocab, {old: number for number, old in enumerate(kept)}
    held = [old for old in kept if old < rows]  # a token may have no row, as `<mask>` often has none
    sizes = {name: value for name, value in config.to_dict().items() if name.endswith("vocab_size")}
    if set(sizes.values()) != {rows}:
        raise WeightsError(
            f"{source}: {', '.join(f'{name} is {value}' for name, value in sizes.items())}: vocabularies of two sizes "
            "cannot be trimmed. Leave student.vocabulary out."
        )
    for name in sizes:
        setattr(config, name, len(held))
    _renumber(config, new)
    config.save_pretrained(target)
    if (source / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(source)
        _renumber(settings, new)
        settings.save_pretrained(target)
    after = _shapes(config)
    files = WeightFiles(source, getattr(config, "transformers_weights", None))
    with torch.device("meta"):
        prefix = model_class(config)(config).base_model_prefix
    cut: dict[str, int] = {}
    for stored in files.shapes:
        name = parameter_name(stored, prefix, before)
        if before.get(name) != after.get(name):
            cut[stored] = next(
                axis for axis, pair in enumerate(zip(before[name], after[name], strict=True)) if pair[0] != pair[1]
            )
    _write_files(files, target, cut, torch.tensor(held))


def _settings(folder: Path) -> list[Any]:
    config: Any = config_of(folder)
    there = (folder / "generation_config.json").is_file()
    return [config, *([GenerationConfig.from_pretrained(folder)] if there else [])]


def _renumber(settings: Any, new: Mapping[int, int]) -> None:
    """New ids in place; what forbids or forces a token that is gone goes with it."""
    for name, value in settings.to_dict().items():
        if value is None:
            continue
        if name.endswith(_SINGLE):
            setattr(settings, name, [_id(one, new) for one in value] if isinstance(value, list) else _id(value, new))
        elif name.endswith(_TABLES) and isinstance(value, dict):
            setattr(settings, name, {code: new[number] for code, number in value.items() if number in new})
        elif name in _LISTS:
            left = [one for one in value if all(number is None or number in new for number in _ids(name, one))]
            made = [_forced(one, new) if name == "forced_decoder_ids" else _each(one, new) for one in left]
            setattr(settings, name, made or None)


def _id(old: int, new: Mapping[int, int]) -> int | None:
    """None for an id that is no token of the tokenizer, and so was never used."""
    return old if old < 0 else new.get(old)


def _ids(name: str, entry: Any) -> list[int | None]:
    """The token ids of one entry of a list: a number, a sequence, or (position, number), where None is open."""
    if name == "forced_decoder_ids":
        return [entry[-1]]
    return entry if isinstance(entry, list) else [entry]


def _forced(entry: Any, new: Mapping[int, int]) -> Any:
    return [*entry[:-1], None if entry[-1] is None else new[entry[-1]]]


def _each(entry: Any, new: Mapping[int, int]) -> Any:
    return [new[one] for one in entry] if isinstance(entry, list) else new[entry]


def _shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model: Any = model_class(config)(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _write_files(files: WeightFiles, target: Path, cut: Mapping[str, int], rows: Tensor) -> None:
    """In as many files as there were."""
    groups = files.by_file()
    index: dict[str, str] = {}
    for number, (file, stored) in enumerate(groups.items(), 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        index |= dict.fromkeys(stored, name)
        if file.suffix == ".safetensors" and not cut.keys() & set(stored):
            (target / name).symlink_to(file.resolve())
            continue
        held = {one: files.read(one) for one in stored}
        made = {one: value.index_select(cut[one], rows) if one in cut else value for one, value in held.items()}
        save_file({one: value.clone().contiguous() for one, value in made.items()}, target / name, {"format": "pt"})
    if len(groups) > 1:
        text = json.dumps({"metadata": {}, "weight_map": index}, indent=2)
        (target / "model.safetensors.index.json").write_text(text, encoding="utf-8")
