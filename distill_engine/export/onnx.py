"""A student for ONNX Runtime: encoder, cross-attention's keys and values, and one step of the decoder with its cache.

Three graphs. `encoder.onnx`: ids, mask -> hidden [B, S, D]. `cross.onnx`: hidden -> keys and values of every decoder
layer's cross-attention, once for a reply. `decoder.onnx`: one token, mask, hidden, the cache of self-attention so far
[B, heads, P, head width] and cross-attention's -> logits [B, 1, V] and the token's own keys and values, which the
caller appends. Beams, forced and suppressed tokens are the caller's: here transformers' own `generate`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.export.protocol import Target, TargetError, files_mib, missing_extra
from distill_engine.models.classes import config_of
from distill_engine.models.loading import Checkpoint
from distill_engine.models.own_settings import read_settings

_OPSET = 17
_CACHE = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"  # its name has changed
GRAPHS = ("encoder", "cross", "decoder")


class Onnx(Target):
    """See Target."""

    meaning = "three graphs for ONNX Runtime, with a cache of keys and values (extra `onnx`)"
    quantizations = ("int8",)
    generates = True

    def write(self, student: Path, target: Path, quantize: str | None, recipe: Path | None) -> None:  # noqa: ARG002
        """See Target."""
        _require("onnx", "onnxruntime")
        model: Any = Checkpoint(student).load(torch.float32)
        if not hasattr(model.get_decoder(), "embed_positions"):
            raise TargetError(
                f"--format onnx does not know {model.config.model_type} models: their attention adds biases of "
                "relative positions, which the exported graphs would freeze at one length. Use --format ctranslate2."
            )
        target.mkdir(parents=True)
        model.set_attn_implementation("eager")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer: it warns of every shape that is no tensor
            _write_graphs(model.eval(), target)
        if quantize == "int8":
            _quantize(target)
        model.config.save_pretrained(target)
        model.generation_config.save_pretrained(target)
        load_tokenizer(str(student)).save_pretrained(target)

    def open(self, folder: Path) -> OnnxStudent:
        """See Target."""
        return OnnxStudent(folder)


def _require(*libraries: str) -> Any:
    modules = []
    for library in libraries:
        try:
            modules.append(__import__(library))
        except ImportError as error:
            raise missing_extra(library, "onnx") from error
    return modules[-1]


class _Encoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, S] twice -> [B, S, D]."""
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state


class _Cross(nn.Module):
    """Runs the decoder on any token; what leads to no key or value of cross-attention is no part of the graph."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.get_decoder()

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """[B, S, D] -> key and value [B, H, S, W] of each layer in turn."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        ids = torch.zeros(hidden.shape[0], 1, dtype=torch.long)
        self.decoder(input_ids=ids, encoder_hidden_states=hidden, use_cache=True, **{_CACHE: cache})
        return tuple(_flat(cache.cross_attention_cache))


class _Step(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, mask: Tensor, hidden: Tensor, *cached: Tensor) -> tuple[Tensor, ...]:
        """[B, 1] and the caches -> logits [B, 1, V], the token's key and value [B, H, 1, W] of each layer in turn."""
        half = len(cached) // 2
        cache = EncoderDecoderCache(_cache(cached[:half]), _cache(cached[half:]))
        cache.is_updated = dict.fromkeys(range(half // 2), True)
        given = {"decoder_input_ids": token, "encoder_outputs": (hidden,), "attention_mask": mask, _CACHE: cache}
        out = self.model(use_cache=True, **given)
        return (out.logits, *(one[:, :, -1:] for one in _flat(cache.self_attention_cache)))


def _cache(flat: tuple[Tensor, ...]) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(len(flat) // 2):
        cache.update(flat[2 * layer], flat[2 * layer + 1], layer)
    return cache


def _flat(cache: Any) -> list[Tensor]:
    return [one for layer in cache.layers for one in (layer.keys, layer.values)]


def _write_graphs(model: Any, folder: Path) -> None:
    ids = torch.full((2, 7), int(model.config.eos_token_id))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    hidden = _Encoder(model)(ids, mask)
    cross = _Cross(model)(hidden)
    past = [torch.randn(2, one.shape[1], 3, one.shape[3]) for one in cross]
    cross_names, past_names = [f"cross_{n}" for n in range(len(cross))], [f"past_{n}" for n in range(len(past))]
    long = {0: "batch", 1: "source"}
    kept = {name: {0: "batch", 2: "source"} for name in cross_names} | {
        name: {0: "batch", 2: "past"} for name in past_names
    }

    def save(name: str, module: nn.Module, given: tuple[Tensor, ...], inputs: list[str], outputs: list[str]) -> None:
        axes = {"ids": long, "mask": long, "hidden": long, "token": {0: "batch"}, "logits": {0: "batch"}, **kept}
        axes = {key: value for key, value in axes.items() if key in (*inputs, *outputs)}
        path = str(folder / f"{name}.onnx")
        torch.onnx.export(module, given, path, input_names=inputs, output_names=outputs, dynamic_axes=axes,
                          opset_version=_OPSET, dynamo=False)  # fmt: skip

    save("encoder", _Encoder(model), (ids, mask), ["ids", "mask"], ["hidden"])
    save("cross", _Cross(model), (hidden,), ["hidden"], cross_names)
    step = (ids[:, :1], mask, hidden, *past, *cross)
    inputs = ["token", "mask", "hidden", *past_names, *cross_names]
    save("decoder", _Step(model), step, inputs, ["logits", *(f"new_{name}" for name in past_names)])


def _quantize(folder: Path) -> None:
    """Weights of matrix products to int8, per channel; activations while it runs."""
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it advises a step that changes nothing for such graphs
    try:
        for name in GRAPHS:
            whole = (folder / f"{name}.onnx").rename(folder / f"{name}.fp32.onnx")
            quantize_dynamic(whole, folder / f"{name}.onnx", per_channel=True, weight_type=QuantType.QInt8)
            whole.unlink()
    finally:
        logging.disable(logging.NOTSET)


class _RunsEncoder(nn.Module):
    """What transformers' `generate` calls the encoder."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        """[B, S] twice."""
        (hidden,) = self._session.run(None, {"ids": input_ids.numpy(), "mask": attention_mask.numpy()})
        return BaseModelOutput(last_hidden_state=torch.from_numpy(hidden))


class OnnxStudent(PreTrainedModel, GenerationMixin):
    """Generates with ONNX Runtime on the CPU; beams, forced and suppressed tokens are transformers'.

    mib_on_disk  of the graphs
    """

    main_input_name = "input_ids"
    _supports_cache_class = True

    def __init__(self, folder: Path) -> None:
        """Raises TargetError without the extra or without the graphs."""
        runtime = _require("onnxruntime")

        missing = [name for name in GRAPHS if not (folder / f"{name}.onnx").is_file()]
        if missing:
            raise TargetError(f"{folder} is no ONNX export: it lacks {', '.join(f'{name}.onnx' for name in missing)}.")
        super().__init__(config_of(folder))
        self.generation_config = read_settings(folder).config
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._sessions = {
            name: runtime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            for name in GRAPHS
        }
        self._encoder = _RunsEncoder(self._sessions["encoder"])
        shapes = {one.name: one.shape for one in self._sessions["decoder"].get_inputs()}
        self._past = sorted((name for name in shapes if name.startswith("past_")), key=lambda name: int(name[5:]))
        self._heads, self._width = shapes["past_0"][1], shapes["past_0"][3]
        self._wanted = set(shapes)
        self.mib_on_disk = files_mib(folder, "*.onnx*")
        self.eval()

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes between the graphs."""
        return torch.float32

    def get_encoder(self, *_: Any, **__: Any) -> nn.Module:
        """For `generate`."""
        return self._encoder

    def forward(
        self,
        decoder_input_ids: Tensor,
        encoder_outputs: Any,
        attention_mask: Tensor,
        input_ids: Tensor | None = None,  # noqa: ARG002  `generate` looks for it
        use_cache: bool | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """One token [B, 1] with what came before it in the cache; all tokens one after the other without a cache."""
        hidden = encoder_outputs[0]
        cache = kwargs.get(_CACHE)
        if cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        if cache.cross_attention_cache.get_seq_length() == 0:
            keys = [torch.from_numpy(one) for one in self._sessions["cross"].run(None, {"hidden": hidden.numpy()})]
            for layer in range(len(keys) // 2):
                cache.cross_attention_cache.update(keys[2 * layer], keys[2 * layer + 1], layer)
                cache.is_updated[layer] = True
        logits = [
            self._step(decoder_input_ids[:, at : at + 1], hidden, attention_mask, cache)
            for at in range(decoder_input_ids.shape[1])
        ]
        left: dict[str, Any] = {_CACHE: cache}
        return Seq2SeqLMOutput(logits=torch.cat(logits, dim=1), **left)

    def _step(self, token: Tensor, hidden: Tensor, mask: Tensor, cache: EncoderDecoderCache) -> Tensor:
        own = cache.self_attention_cache
        begun = own.get_seq_length() > 0
        empty = torch.zeros(token.shape[0], self._heads, 0, self._width)
        past = _flat(own) if begun else [empty] * len(self._past)
        given = {"token": token, "mask": mask, "hidden": hidden, **dict(zip(self._past, past, strict=True))}
        given |= {f"cross_{number}": one for number, one in enumerate(_flat(cache.cross_attention_cache))}
        fed = {name: value.contiguous().numpy() for name, value in given.items() if name in self._wanted}
        logits, *new = self._sessions["decoder"].run(None, fed)
        for layer in range(len(new) // 2):
            own.update(torch.from_numpy(new[2 * layer]), torch.from_numpy(new[2 * layer + 1]), layer)
        return torch.from_numpy(logits)


TARGET = Onnx()
