"""A Hugging Face Blenderbot or BART -> ParlAI's files: model, .opt, .dict and the BPE's two."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from distill_engine.interop.parlai.architecture import PARLAI_MODELS, START, VARIANTS, Agent, generation_options
from distill_engine.interop.parlai.dictionary import PAD_SIZE
from distill_engine.interop.parlai.folder import new_folder
from distill_engine.interop.parlai.from_tokenizer import ParlaiDictionary, dictionary_of
from distill_engine.interop.parlai.importer import hugging_face_state
from distill_engine.interop.parlai.options.errors import ParlaiError, shown
from distill_engine.interop.parlai.options.flags import default_options
from distill_engine.interop.parlai.source import SourceFiles, read_model
from distill_engine.interop.parlai.tokenizer import PROVENANCE, REMEMBERED, build_tokenizer
from distill_engine.interop.parlai.weights import (
    EMBEDDING,
    LOGITS_BIAS,
    SHARED,
    START_TENSOR,
    TIED_EMBEDDINGS,
    parlai_names,
    position_rows_added,
    position_rows_removed,
    their_name,
)
from distill_engine.models.loading import Checkpoint
from distill_engine.models.own_settings import GenerationError, read_settings

_AGENTS: dict[str, Agent] = {"blenderbot": "generator", "bart": "bart"}

# Texts whose ids are compared before an export counts: spaces, digits, marks, other scripts, typed special tokens.
_PROBES = (
    "hello there, how are you? i'm 42 years old!",
    " two  spaces and a\nline break\twith a tab ",
    "Ünïcödé 漢字 かな 😀 ½ ² e\u0301 \u200b",
    "your persona: i don't like </s> <s> tokens, 1,234.56 of them",
    "aaaaaaaaaaaaaaaaaaaa ... !!! ??? --- ___ \\n \\t '' \"\"",
)


@dataclass(frozen=True)
class ExportedToParlai:
    """What an export made: `model_file` is what ParlAI's --model-file wants."""

    model_file: Path
    model: str
    vocabulary: int
    parameters: int


def export_parlai(student: Path, target: Path, options: Mapping[str, Any] | None = None) -> ExportedToParlai:
    """Write a Hugging Face folder's model as ParlAI loads it into the new folder `target`, as `target/model`.

    options  ParlAI options (names with underscores) for the .opt, over what the tokenizer remembers: the delimiter
             and truncations the student was trained with, its task, how to generate

    The files are read back and every tensor and the ids of probe texts compared before the folder appears. Raises
    ParlaiError for what ParlAI cannot represent, WeightsError for damaged weights, OSError if it cannot be written.
    """
    config, tokenizer = _load(student)
    agent = _agent_of(config, student)
    dictionary = dictionary_of(tokenizer, config)
    weights = Checkpoint(student)
    state = _parlai_state(weights, config, dictionary.order)
    _check_bias(weights, student)
    opt = _options(config, agent, tokenizer, dictionary, _generation(student), state[EMBEDDING].dtype)
    opt |= dict(options or {})
    with new_folder(target) as folder:
        model = folder / "model"
        torch.save({"model": state}, model)
        dictionary.write(folder / "model.dict")
        (folder / "model.opt").write_text(json.dumps(opt, indent=4) + "\n", encoding="utf-8")
        _verify(model, weights, tokenizer, dictionary)
    return ExportedToParlai(
        model_file=target / "model",
        model=opt["model"],
        vocabulary=len(dictionary.tokens),
        parameters=sum(value.numel() for name, value in state.items() if name not in (START_TENSOR, *TIED_EMBEDDINGS)),
    )


def _load(student: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    if not student.is_dir():
        raise ParlaiError(f"{student} is no folder. An export starts from a Hugging Face folder, such as a run's best.")
    try:
        config = AutoConfig.from_pretrained(student, trust_remote_code=False)
        return config, AutoTokenizer.from_pretrained(student, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken file makes transformers and tokenizers raise nearly anything
        raise ParlaiError(
            f"{student} does not load with transformers ({type(error).__name__}: {shown(str(error))}). "
            "It needs config.json and a tokenizer. Give a complete folder."
        ) from error


def _generation(student: Path) -> GenerationConfig:
    """What transformers takes for the folder. Raises ParlaiError if it takes nothing."""
    try:
        return read_settings(student).config
    except GenerationError as error:
        raise ParlaiError(f"{student}: {error}. Correct them.") from error


def _agent_of(config: PretrainedConfig, student: Path) -> Agent:
    """transformer/generator or bart. Raises ParlaiError for whatever neither of them can be."""
    if config.model_type not in _AGENTS:
        raise ParlaiError(
            f"{student} is a {config.model_type} model. ParlAI has counterparts of {', '.join(_AGENTS)}. "
            "Keep it as a Hugging Face folder."
        )
    agent = _AGENTS[config.model_type]
    start = config.bos_token_id if agent == "generator" else config.eos_token_id
    rules = {
        "encoder and decoder attention heads differ": config.encoder_attention_heads != config.decoder_attention_heads,
        "encoder and decoder feed-forward widths differ": config.encoder_ffn_dim != config.decoder_ffn_dim,
        f"activation_function is {config.activation_function}, not gelu or relu": config.activation_function
        not in ("gelu", "relu"),
        "embeddings and output are not tied": not getattr(config, "tie_word_embeddings", True),
        f"decoder_start_token_id is {config.decoder_start_token_id}, not {start}": config.decoder_start_token_id
        != start,
    }
    broken = [rule for rule, applies in rules.items() if applies]
    if broken:
        raise ParlaiError(
            f"{student}/config.json: {'; '.join(broken)}. A ParlAI {PARLAI_MODELS[agent]} model cannot be like that. "
            "Keep it as a Hugging Face folder."
        )
    return agent


def _parlai_state(weights: Checkpoint, config: PretrainedConfig, order: list[int]) -> OrderedDict[str, Tensor]:
    """The tensors by ParlAI's names, in ParlAI's order; the embedding's rows in the dictionary's."""
    embedding = weights.read(SHARED)
    moved = embedding if order == list(range(len(order))) else embedding[torch.tensor(order)]
    state: OrderedDict[str, Tensor] = OrderedDict({START_TENSOR: torch.tensor([START])})
    for name in parlai_names({"encoder": config.encoder_layers, "decoder": config.decoder_layers}):
        if name in (EMBEDDING, *TIED_EMBEDDINGS):
            state[name] = moved  # one tensor: torch.save then writes it once
        else:
            theirs = their_name(name, config.model_type)
            assert theirs is not None, f"parlai_names and their_name know the same names: {name}"
            state[name] = position_rows_removed(name, weights.read(theirs), config.model_type)
    return state


def _check_bias(weights: Checkpoint, student: Path) -> None:
    if bool(weights.read(LOGITS_BIAS).count_nonzero()):
        raise ParlaiError(
            f"{student}: {LOGITS_BIAS} is not zero. ParlAI's output has no bias. Keep it as a Hugging Face folder."
        )


def _options(
    config: PretrainedConfig,
    agent: Agent,
    tokenizer: PreTrainedTokenizerBase,
    dictionary: ParlaiDictionary,
    generation: GenerationConfig,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """A whole .opt: ParlAI's defaults, what the tokenizer remembers of its origin, the architecture, the dictionary."""
    positions = config.max_position_embeddings
    remembered = {k: v for k, v in (tokenizer.init_kwargs.get(PROVENANCE) or {}).items() if k in REMEMBERED}
    longest = {"truncate": positions, "text_truncate": positions, "label_truncate": positions - (agent == "bart")}
    limits = {name: min(most, _length(remembered.get(name)) or most) for name, most in longest.items()}
    half = dtype == torch.float16 and len(dictionary.tokens) % PAD_SIZE == 0
    return {
        **default_options(),
        **remembered,
        **limits,
        **dictionary.options,
        **generation_options(generation),
        "model": PARLAI_MODELS[agent],
        "variant": VARIANTS[agent],
        "embedding_size": config.d_model,
        "ffn_size": config.encoder_ffn_dim,
        "n_heads": config.encoder_attention_heads,
        "n_layers": max(config.encoder_layers, config.decoder_layers),
        "n_encoder_layers": config.encoder_layers,
        "n_decoder_layers": config.decoder_layers,
        "n_positions": positions,
        "activation": config.activation_function,
        "embeddings_scale": config.scale_embedding,
        "learn_positional_embeddings": bool(remembered.get("learn_positional_embeddings", agent == "bart")),
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "relu_dropout": config.activation_dropout,
        "fp16": half,
        "force_fp16_tokens": False,  # rows that pad the vocabulary are in the dictionary already
    }


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _verify(
    model_file: Path, weights: Checkpoint, tokenizer: PreTrainedTokenizerBase, dictionary: ParlaiDictionary
) -> None:
    """Read the files as an import does, and compare with the student. Raises ParlaiError on any difference."""
    model = read_model(SourceFiles(model_file))
    order = torch.tensor(dictionary.order)
    for name, tensor in hugging_face_state(model).items():
        if name == LOGITS_BIAS:
            continue
        stored = weights.read(name)
        wanted = stored[order] if name == SHARED else stored
        if name.endswith("embed_positions.weight"):
            plain = position_rows_removed("position_embeddings.weight", stored, model.architecture.family)
            wanted = position_rows_added("position_embeddings.weight", plain, model.architecture.family)
        if not torch.equal(tensor, wanted):
            raise ParlaiError(f"{model_file}: {name} differs (or holds NaN) after reading it back.")
    again = build_tokenizer(model.dictionary, model.options, model.architecture.agent, 0)
    places = {row: number for number, row in enumerate(dictionary.order)}
    for probe in _PROBES:
        text = " ".join(probe.split()) if dictionary.spaced else probe
        ours = [places[row] for row in _plain_ids(tokenizer, text)]
        if ours != _plain_ids(again, text):
            raise ParlaiError(
                f"{model_file}.dict: ParlAI's tokenizer would read {text!r} as other tokens than the student's does. "
                "The dictionary cannot be exported. Export the student as a Hugging Face folder."
            )


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text, special tokens in it read as text, none added."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        return list(backend.encode(text, add_special_tokens=False).ids)
    finally:
        backend.encode_special_tokens = before
