"""The teacher: ZeRO-3, inference only. Each rank loads and keeps only its part of every parameter."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

from distill_engine.engine.distributed import Ranks
from distill_engine.values import Batch, FeatureRequest, Features


class TeacherError(RuntimeError):
    """The teacher cannot be loaded as it must be: complete, sharded and frozen."""


class TeacherFilesError(TeacherError):
    """The teacher's files are damaged or incomplete: loading them again cannot help."""


class TeacherEngine:
    """Shows features of a frozen, sharded model.

    Every forward pass is a chain of all-gathers: all ranks must call `features` equally often.
    """

    def __init__(
        self,
        folder: Path,
        ds_config: Mapping[str, Any],
        dtype: torch.dtype,
        ranks: Ranks,
        adapt: Callable[[PreTrainedModel], nn.Module],
    ) -> None:
        """Load from a local folder; `adapt` wraps the model into what shows features (models.adapter).

        Raises TeacherError if anything is missing or not sharded.
        """
        model = _load_sharded(folder, ds_config, dtype, ranks)
        _require_sharded(model, ranks.world_size)
        model.requires_grad_(False).eval()
        engine, *_ = deepspeed.initialize(model=adapt(model), config=dict(ds_config))
        engine.eval()
        self._engine = engine
        self._embedding: Tensor | None = None
        self.config = model.config

    @property
    def model(self) -> PreTrainedModel:
        """The teacher itself, to generate with. Collective like `features`: all ranks must call it equally often."""
        model: PreTrainedModel = self._engine.module.model
        return model

    def features(self, batch: Batch, request: FeatureRequest) -> Features:
        """What was asked, without gradients. Raises TeacherError if the logits are not finite numbers."""
        # no_grad, not inference_mode: losses save these tensors for the student's backward pass
        with torch.no_grad():
            shown: Features = self._engine(batch, request)
            if shown.head is None:
                return shown
            return replace(shown, head=replace(shown.head, embedding=self._output_embedding()))

    def _output_embedding(self) -> Tensor:
        """[V, D], whole. The sharded one is gone when the pass is over; this copy is gathered once and kept, which is
        as true: the teacher is frozen. Collective."""
        if self._embedding is None:
            weight = self._engine.module.model.get_output_embeddings().weight
            with deepspeed.zero.GatheredParameters([weight]):
                self._embedding = weight.detach().clone()
        return self._embedding

    def probe(self, batch: Batch) -> Tensor:
        """Logits of a probe batch, checked to be finite. Raises TeacherError otherwise (fp16 overflow?)."""
        logits = self.features(batch, FeatureRequest()).logits
        assert logits is not None
        if not torch.isfinite(logits).all():
            raise TeacherError(
                f"the teacher's logits are not finite in {logits.dtype} on a probe batch. Its activations may "
                "overflow: use a bf16 DeepSpeed config (ds_configs/zero2_bf16.json)."
            )
        return logits


def _load_sharded(folder: Path, ds_config: Mapping[str, Any], dtype: torch.dtype, ranks: Ranks) -> PreTrainedModel:
    # transformers keeps only a weak reference to this object; while it lives, from_pretrained shards.
    # It must be gone before the student is touched, or the student would be sharded too.
    switch = HfDeepSpeedConfig(dict(ds_config))
    model, problem = None, ""
    try:
        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        problem = "; ".join(_misfits(folder, model, info))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        problem = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    finally:
        del switch
        unset_hf_deepspeed_config()
        gc.collect()
    # only rank 0 reads the values, so a tensor of the wrong shape is an error there and nowhere else
    problems = [one for one in ranks.gather(problem) if one]
    if model is None or problems:
        raise TeacherFilesError(
            f"teacher.path {folder}: its weights cannot be read or do not fit its config.json: {problems[0]}. Missing "
            "tensors would be random numbers. Copy or download the model again, complete."
        )
    return model


def _misfits(folder: Path, model: PreTrainedModel, info: Mapping[str, Any]) -> Iterator[str]:
    """What the files lack, and layers that they have besides (under ZeRO-3 transformers does not tell of these)."""
    # tied twins of the embedding and the zero logits bias may be left out of a file
    harmless = ("embed_tokens.weight", "lm_head.weight", "final_logits_bias")
    missing = sorted(str(key) for key in info.get("missing_keys", ()) if not str(key).endswith(harmless))
    if missing:
        yield f"{len(missing)} tensors are missing ({', '.join(missing[:5])})"
    known = {name.removeprefix("model.") for name in model.state_dict()}
    layers = {name for name in _stored_names(folder) if ".layers." in name}
    extra = sorted(name for name in layers if name.removeprefix("model.") not in known)
    if extra:
        yield f"{len(extra)} tensors belong to no layer of the model ({', '.join(extra[:5])})"


def _stored_names(folder: Path) -> set[str]:
    """Names of the tensors in a safetensors checkpoint; none where the folder holds another format."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if not single.is_file():
        return set()
    with safe_open(single, framework="pt") as file:
        return set(file.keys())


def _require_sharded(model: PreTrainedModel, world_size: int) -> None:
    whole = [name for name, p in model.named_parameters() if not hasattr(p, "ds_id")]
    if whole:
        raise TeacherError(
            f"{len(whole)} teacher parameters are not sharded (first: {whole[0]}). The ZeRO-3 configuration did "
            "not reach from_pretrained; this is a defect of the engine or of the installed transformers."
        )
    parameters: list[Any] = list(model.parameters())  # DeepSpeed adds the attributes ds_*
    total = sum(p.ds_numel for p in parameters)
    here = sum(p.ds_tensor.numel() for p in parameters)
    allowed = total / world_size + world_size * len(parameters)  # each shard is rounded up
    if here > allowed:
        raise TeacherError(f"this rank holds {here} of {total} teacher elements; expected about {total // world_size}.")
