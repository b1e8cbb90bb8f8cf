"""The files of a ParlAI model, found from its model file, and read together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distill_engine.interop.parlai.architecture import Architecture, architecture_of
from distill_engine.interop.parlai.checkpoint import load_options, load_state
from distill_engine.interop.parlai.dictionary import (
    BYTE_LEVEL,
    ESCAPED_SPELLING,
    Bpe,
    Dictionary,
    build_dictionary,
    byte_spelling,
    check_fits,
    read_bpe,
    read_lines,
)
from distill_engine.interop.parlai.options.errors import ParlaiError
from distill_engine.interop.parlai.tokenizer import check_kind
from distill_engine.interop.parlai.weights import EMBEDDING

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceFiles:
    """Where a model's parts are. What is not given is looked for beside the model, where ParlAI puts it."""

    model: Path
    opt: Path | None = None
    dictionary: Path | None = None
    bpe_vocab: Path | None = None
    bpe_merges: Path | None = None


@dataclass(frozen=True)
class ParlaiModel:
    """A ParlAI model as its files have it: tensors by ParlAI's names, options, dictionary (fits the embedding)."""

    model: Path
    options: dict[str, Any]
    architecture: Architecture
    dictionary: Dictionary
    state: dict[str, Tensor]


def read_model(files: SourceFiles, allow_pickle: bool = False) -> ParlaiModel:
    """Read and check everything; cheap checks first. Raises ParlaiError."""
    model = _model_file(files.model)
    opt = files.opt or Path(f"{model}.opt")
    if not opt.is_file() and not model.exists():
        load_state(model)  # says that there is no such model, which explains the missing options
    options = load_options(opt, allow_pickle)
    architecture = architecture_of(options, str(opt))
    kind = check_kind(options)
    dict_file = files.dictionary or _dict_file(model, options)
    bpe = _read_bpe(files, dict_file, options) if kind in BYTE_LEVEL else None
    lines = read_lines(dict_file)
    if bpe is not None and kind in ESCAPED_SPELLING:
        _check_spelling(lines, bpe, dict_file)
    dictionary = build_dictionary(lines, bpe, options)
    state = load_state(model, allow_pickle)
    if EMBEDDING not in state:
        raise ParlaiError(
            f"{model} has no tensor {EMBEDDING!r}. A {architecture.family} model has one. "
            "Give a transformer/generator or bart model."
        )
    fitting = check_fits(dictionary, state[EMBEDDING].shape[0], dict_file)
    return ParlaiModel(model, options, architecture, fitting, state)


def _model_file(path: Path) -> Path:
    """A folder of the model zoo means the file `model` in it."""
    return path / "model" if path.is_dir() and (path / "model").is_file() else path


def _dict_file(model: Path, options: Mapping[str, Any]) -> Path:
    """MODEL.dict; of a checkpoint, the finished model's; else where the options say."""
    beside = [Path(f"{model}.dict"), Path(f"{str(model).removesuffix('.checkpoint')}.dict")]
    named = [Path(str(options["dict_file"]))] if options.get("dict_file") else []
    return next((path for path in (*beside, *named) if path.is_file()), beside[0])


def _read_bpe(files: SourceFiles, dict_file: Path, options: Mapping[str, Any]) -> Bpe:
    gpt2 = Path(str(options.get("datapath") or "data")) / "gpt2"
    vocab = _first(
        files.bpe_vocab, f"{dict_file}-vocab.json", options.get("bpe_vocab"), gpt2 / "encoder.json", what="--bpe-vocab"
    )
    merges = _first(
        files.bpe_merges, f"{dict_file}-merges.txt", options.get("bpe_merge"), gpt2 / "vocab.bpe", what="--bpe-merges"
    )
    return read_bpe(vocab, merges)


def _first(given: Path | None, *places: Any, what: str) -> Path:
    if given is not None:
        return given
    found = next((Path(place) for place in places if place and Path(place).is_file()), None)
    if found is None:
        looked = ", ".join(str(place) for place in places if place)
        raise ParlaiError(
            f"The model's BPE file was not found at any of: {looked}. ParlAI keeps it beside the .dict "
            f"(bytelevelbpe) or in its data folder as gpt2/encoder.json and gpt2/vocab.bpe (gpt2). Name it with {what}."
        )
    return found


def _check_spelling(lines: list[str], bpe: Bpe, dict_file: Path) -> None:
    """gpt2 dictionaries list the BPE's tokens; one that lists none of its words was made with another BPE."""
    known = {byte_spelling(token) for token in bpe.vocabulary}
    foreign = [line for line in lines if line not in known and not line.startswith("__")]
    if len(foreign) > len(lines) // 100:
        raise ParlaiError(
            f"{dict_file} lists {len(foreign)} tokens that the BPE does not have, such as {foreign[0]!r}. "
            "The BPE's files and the dictionary belong together. Give those the model was trained with."
        )
