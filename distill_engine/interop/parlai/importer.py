"""A ParlAI model -> a Hugging Face folder with the same tensors and a tokenizer that gives the same ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PretrainedConfig

from distill_engine.interop.parlai.architecture import START, generation_of
from distill_engine.interop.parlai.folder import new_folder
from distill_engine.interop.parlai.options.errors import ParlaiError, shown
from distill_engine.interop.parlai.source import ParlaiModel, SourceFiles, read_model
from distill_engine.interop.parlai.tokenizer import build_tokenizer
from distill_engine.interop.parlai.weights import (
    EMBEDDING,
    LOGITS_BIAS,
    PROJECTIONS,
    SHARED,
    START_TENSOR,
    TIED_EMBEDDINGS,
    parlai_names,
    position_rows_added,
    their_name,
)
from distill_engine.models.loading import Checkpoint


@dataclass(frozen=True)
class Imported:
    """What an import made, and what a recipe should say about the data this model was trained with.

    data  keys of a recipe's `data` section
    """

    folder: Path
    family: str
    parameters: int
    dtype: str
    vocabulary: int
    projections_left_out: int
    trains_positions: bool
    data: dict[str, Any]


def import_parlai(files: SourceFiles, target: Path, *, allow_pickle: bool = False) -> Imported:
    """Convert a model into a new folder: weights, config, generation config, tokenizer, README.

    The folder is loaded with transformers and every tensor compared before it appears under its name. Raises
    ParlaiError: what cannot be converted exactly, missing or damaged files, a target that exists.
    """
    with new_folder(target) as folder:
        model = read_model(files, allow_pickle)
        state = hugging_face_state(model)
        config = model.architecture.config(len(model.dictionary.tokens))
        config.dtype = state[SHARED].dtype
        config.architectures = [_model_class(config).__name__]
        _check_shapes(config, state, model)
        save_torch_state_dict(state, folder, metadata={"format": "pt"})
        config.save_pretrained(folder)
        generation_of(model.options, model.architecture.agent).save_pretrained(folder)
        build_tokenizer(
            model.dictionary, model.options, model.architecture.agent, model.architecture.n_positions
        ).save_pretrained(folder)
        imported = _report(model, state, target)
        (folder / "README.md").write_text(_card(model, imported), encoding="utf-8")
        _verify(folder, state)
    return imported


def hugging_face_state(model: ParlaiModel) -> dict[str, Tensor]:
    """The model's tensors by Hugging Face's names, projections left out.

    Raises ParlaiError for tensors that are missing, unknown, of mixed types or not tied as they should be.
    """
    family, state = model.architecture.family, model.state
    layers = {"encoder": model.architecture.n_encoder_layers, "decoder": model.architecture.n_decoder_layers}
    expected = [name for name in parlai_names(layers) if name not in TIED_EMBEDDINGS or name in state]
    missing = [name for name in expected if name not in state]
    unknown = [n for n in state if n not in expected and n != START_TENSOR and not n.startswith(PROJECTIONS)]
    if missing or unknown:
        raise ParlaiError(
            f"{model.model} does not hold the model that its options describe: missing {shown(missing)}, "
            f"unknown {shown(unknown)}. Layers and variant in the .opt have to be the model's. Give the right .opt."
        )
    _check_ties_and_types(model, expected)
    converted: dict[str, Tensor] = {}
    for name in expected:
        theirs = their_name(name, family)
        assert theirs is not None, f"every expected tensor has a name there: {name}"
        converted.setdefault(theirs, position_rows_added(name, state[name], family).contiguous())
    converted[LOGITS_BIAS] = state[EMBEDDING].new_zeros(1, state[EMBEDDING].shape[0])
    return converted


def _check_ties_and_types(model: ParlaiModel, names: list[str]) -> None:
    state = model.state
    for name in TIED_EMBEDDINGS:
        if name in state and not _same(state[name], state[EMBEDDING]):
            raise ParlaiError(
                f"{model.model}: {name} differs from {EMBEDDING}. Both formats have one table for both stacks and the "
                "output. A model with several cannot be converted."
            )
    types = sorted({str(state[name].dtype) for name in names})
    if len(types) > 1 or not state[EMBEDDING].is_floating_point():
        raise ParlaiError(
            f"{model.model} holds tensors of type {', '.join(types)}. A model is stored in one floating-point type. "
            "Save it again with ParlAI, with or without --fp16."
        )
    start = state.get(START_TENSOR)
    if start is not None and start.tolist() != [START]:
        raise ParlaiError(
            f"{model.model} starts replies with token {start.tolist()}, not [{START}]. The first four ids are null, "
            "start, end and unknown. This model has another dictionary; it cannot be converted."
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit: not-a-number equals itself here."""
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
    )


def _model_class(config: PretrainedConfig) -> Any:
    return AutoModelForSeq2SeqLM._model_mapping[type(config)]


def _check_shapes(config: PretrainedConfig, state: dict[str, Tensor], model: ParlaiModel) -> None:
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in _model_class(config)(config).state_dict().items()}
    for name, tensor in state.items():
        if wanted[name] != tuple(tensor.shape):
            raise ParlaiError(
                f"{model.model}: {name} has shape {tuple(tensor.shape)}, but the options ask for {wanted[name]}. "
                "embedding_size, ffn_size, n_positions (or the truncations) decide it. Give the model's own .opt."
            )


def _verify(folder: Path, state: dict[str, Tensor]) -> None:
    written = Checkpoint(folder).load(state[SHARED].dtype).state_dict()
    lost = [name for name, tensor in state.items() if not _same(tensor, written[name])]
    if lost:
        raise ParlaiError(f"{folder}: tensors differ after loading them with transformers: {shown(lost)}.")


def _report(model: ParlaiModel, state: dict[str, Tensor], target: Path) -> Imported:
    options = model.options
    keys = {"context_tokens": "text_truncate", "label_tokens": "label_truncate"}
    limits = {ours: options.get(theirs) or options.get("truncate") or 0 for ours, theirs in keys.items()}
    data: dict[str, Any] = {ours: limit for ours, limit in limits.items() if limit > 0}
    data |= {
        "delimiter": options.get("delimiter", "\n"),
        "history_end_token": options.get("history_add_global_end_token") is not None,
    }
    return Imported(
        folder=target,
        family=model.architecture.family,
        parameters=sum(tensor.numel() for name, tensor in state.items() if name != LOGITS_BIAS),
        dtype=str(state[SHARED].dtype).removeprefix("torch."),
        vocabulary=len(model.dictionary.tokens),
        projections_left_out=sum(name.startswith(PROJECTIONS) for name in model.state),
        trains_positions=bool(options.get("learn_positional_embeddings")),
        data=data,
    )


def _card(model: ParlaiModel, imported: Imported) -> str:
    lines = [
        f"# {model.model.name}",
        "",
        f"Converted from a ParlAI `{model.options['model']}` model, trained on "
        f"`{model.options.get('task') or 'an unknown task'}`; tensors unchanged ({imported.dtype}, "
        f"{imported.parameters:,} parameters), token ids are ParlAI's.",
        "",
        "- Contexts were cut on the left, replies on the right; turns are tokenised one by one and joined by "
        f"`{imported.data['delimiter']!r}`.",
        f"- Position tables were {'trained' if imported.trains_positions else 'fixed (sinusoidal)'}.",
    ]
    if imported.family == "blenderbot":
        lines.append(
            "- ParlAI never predicts the start token and leaves it out of the softmax; here it is suppressed in "
            "generation only."
        )
    return "\n".join(lines) + "\n"
