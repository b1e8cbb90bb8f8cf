"""A student for CTranslate2, by its own converters, or by its specification where only the converter is missing.

The folder holds CTranslate2's model.bin, config.json and vocabularies, the tokenizer, and in `transformers/` the
student's configuration and generation settings, which CTranslate2's own config.json would overwrite.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.export.protocol import Target, TargetError, files_mib, missing_extra
from distill_engine.models.classes import config_of
from distill_engine.models.loading import Checkpoint
from distill_engine.models.own_settings import read_settings

_SETTINGS = "transformers"
_UNKNOWN = ("encoder_no_repeat_ngram_size", "num_beam_groups", "forced_decoder_ids")


class CTranslate2(Target):
    """See Target."""

    meaning = "CTranslate2's model folder, for fast inference on CPUs and GPUs (extra `ctranslate2`)"
    quantizations = ("int8", "int16", "float16", "bfloat16")
    generates = True

    def write(self, student: Path, target: Path, quantize: str | None, recipe: Path | None) -> None:  # noqa: ARG002
        """See Target."""
        library = _library()
        if quantize is not None:
            _require_arithmetic(library, quantize)
        config: Any = config_of(student)
        _know(config)
        try:
            _converter(library, student).convert(str(target), quantization=quantize)
        except (ValueError, NotImplementedError, KeyError, AttributeError) as error:
            raise TargetError(f"CTranslate2 cannot convert {student} ({config.model_type}): {error}") from error
        config.save_pretrained(target / _SETTINGS)
        read_settings(student).config.save_pretrained(target / _SETTINGS)
        load_tokenizer(str(student)).save_pretrained(target)

    def open(self, folder: Path) -> CTranslate2Student:
        """See Target."""
        return CTranslate2Student(folder)


def _library() -> Any:
    try:
        import ctranslate2
        import ctranslate2.converters
    except ImportError as error:
        raise missing_extra("ctranslate2", "ctranslate2") from error
    return ctranslate2


def _require_arithmetic(library: Any, quantize: str) -> None:
    """Elsewhere CTranslate2 silently computes in another type, and what was compared is not what was asked for."""
    device = "cuda" if library.get_cuda_device_count() else "cpu"
    known = sorted(library.get_supported_compute_types(device))
    if quantize not in known:
        raise TargetError(
            f"--quantize {quantize}: this machine's {device} has no such arithmetic for CTranslate2, so the export "
            f"could not be compared with the student. It has {', '.join(known)}."
        )


def _know(config: Any) -> None:
    """Families without a converter: one for normalisation before each block and after the last, learned positions.

    Raises TargetError for those with other layers.
    """
    from ctranslate2.converters import transformers as converters

    name = type(config).__name__
    if name in converters._MODEL_LOADERS:
        return
    with torch.device("meta"):
        from transformers import AutoModelForSeq2SeqLM

        model: Any = AutoModelForSeq2SeqLM.from_config(config)
    stacks = [model.get_encoder(), model.get_decoder()]
    before = all(hasattr(one, "layer_norm") and not hasattr(one, "layernorm_embedding") for one in stacks)
    if not before or not all(hasattr(one, "embed_positions") for one in stacks):
        raise TargetError(
            f"--format ctranslate2 does not know {config.model_type} models: CTranslate2 has no converter for them, "
            "and their layers are not those of its specification. Use --format onnx."
        )

    @converters.register_loader(name)
    class Loader(converters.BartLoader):
        """The same names as BART's layers."""

        architecture_name = type(model).__name__


def _converter(library: Any, student: Path) -> Any:
    """CTranslate2's, told what configurations no longer say: which norms there are."""

    class Converter(library.converters.TransformersConverter):
        """See _converter."""

        def load_model(self, model_class: Any, _name: str, dtype: Any = None, **_: Any) -> Any:
            """Through our own loader, which compares files with the configuration."""
            model: Any = Checkpoint(student).load(dtype or torch.float32)
            assert isinstance(model, model_class)
            encoder = model.get_encoder()
            model.config.normalize_before = hasattr(encoder, "layer_norm")
            model.config.normalize_embedding = hasattr(encoder, "layernorm_embedding")
            return model

    return Converter(str(student))


class CTranslate2Student:
    """Generates with CTranslate2, on the CPU with as many threads as PyTorch has, or on the first GPU.

    mib_on_disk  of model.bin
    ignored      generation settings of the student that CTranslate2 does not have
    """

    def __init__(self, folder: Path) -> None:
        """Raises TargetError without the extra and for a folder that is no such export."""
        library = _library()
        if not (folder / "model.bin").is_file() or not (folder / _SETTINGS / "config.json").is_file():
            raise TargetError(f"{folder} is no CTranslate2 export of this program: it lacks model.bin or {_SETTINGS}/.")
        self.config: Any = config_of(folder / _SETTINGS)
        self.generation_config = read_settings(folder / _SETTINGS).config
        self.device = torch.device("cuda" if library.get_cuda_device_count() else "cpu")
        self.dtype = torch.float32
        self.mib_on_disk = files_mib(folder, "model.bin")
        self._translator = library.Translator(
            str(folder), device=self.device.type, inter_threads=1, intra_threads=torch.get_num_threads()
        )
        vocabulary = load_tokenizer(str(folder)).get_vocab()
        self._ids = dict(vocabulary)
        self._tokens = {number: token for token, number in vocabulary.items()}
        said = next(folder.glob("*[dt]_vocabulary.json"))  # shared or target; both are alike here
        self._known = set(json.loads(said.read_text(encoding="utf-8")))
        started = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("decoder_start_token")
        self._starts_itself = started is not None
        self.ignored = [name for name in _UNKNOWN if getattr(self.generation_config, name, None)]

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **changed: Any) -> Tensor:
        """See ExportedModel."""
        lengths = attention_mask.sum(dim=1).tolist()
        source = [self._said(row[:length]) for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        settings = {**self.generation_config.to_dict(), **changed}
        start = int(settings["decoder_start_token_id"])
        end = settings["eos_token_id"] if isinstance(settings["eos_token_id"], int) else settings["eos_token_id"][0]
        prefix = [] if self._starts_itself else [start]
        if settings.get("forced_bos_token_id") is not None:
            prefix.append(int(settings["forced_bos_token_id"]))
        found = self._translator.translate_batch(
            source,
            target_prefix=[self._said(prefix)] * len(source) if prefix else None,
            **self._options(settings),
        )
        rows = [[start, *(self._ids[token] for token in one.hypotheses[0]), end] for one in found]
        longest = max(map(len, rows))
        pad = int(self.config.pad_token_id)
        return torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=input_ids.device)

    def _said(self, ids: list[int]) -> list[str]:
        return [self._tokens[number] for number in ids]

    def _options(self, settings: dict[str, Any]) -> dict[str, Any]:
        """transformers' settings by CTranslate2's names; tokens are counted without the start token there."""
        most = settings.get("max_new_tokens") or int(settings.get("max_length") or 20) - 1
        least = settings.get("min_new_tokens") or max(0, int(settings.get("min_length") or 0) - 1)
        never = [[one] for one in settings.get("suppress_tokens") or []] + list(settings.get("bad_words_ids") or [])
        named = [[self._tokens[int(one)] for one in sequence] for sequence in never]
        suppressed = [sequence for sequence in named if self._known.issuperset(sequence)]  # no padding token
        return {
            "beam_size": int(settings.get("num_beams") or 1),
            "length_penalty": float(settings.get("length_penalty") or 1.0),
            "repetition_penalty": float(settings.get("repetition_penalty") or 1.0),
            "no_repeat_ngram_size": int(settings.get("no_repeat_ngram_size") or 0),
            "max_decoding_length": int(most),
            "min_decoding_length": int(least),
            "suppress_sequences": suppressed or None,
        }


TARGET = CTranslate2()
