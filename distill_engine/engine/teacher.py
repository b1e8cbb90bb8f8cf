"""The teacher: ZeRO-3, inference only. Each rank loads and keeps only its part of every parameter."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors import SafetensorError
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
        model = _load_sharded(folder, ds_config, dtype)
        _require_sharded(model, ranks.world_size)
        model.requires_grad_(False).eval()
        engine, *_ = deepspeed.initialize(model=adapt(model), config=dict(ds_config))
        engine.eval()
        self._engine = engine
        self.config = model.config

    def features(self, batch: Batch, request: FeatureRequest) -> Features:
        """What was asked, without gradients. Raises TeacherError if the logits are not finite numbers."""
        # no_grad, not inference_mode: losses save these tensors for the student's backward pass
        with torch.no_grad():
            return self._engine(batch, request)

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


def _load_sharded(folder: Path, ds_config: Mapping[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    # transformers keeps only a weak reference to this object; while it lives, from_pretrained shards.
    # It must be gone before the student is touched, or the student would be sharded too.
    switch = HfDeepSpeedConfig(dict(ds_config))
    try:
        model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, SafetensorError) as error:
        raise TeacherFilesError(
            f"teacher.path {folder}: its weights cannot be read: {error}. Copy or download the model again."
        ) from error
    finally:
        del switch
        unset_hf_deepspeed_config()
        gc.collect()
    wrong = {
        "missing": _real_names(info.get("missing_keys", ())),
        "unexpected": _real_names(info.get("unexpected_keys", ())),
        "mismatched": _real_names(info.get("mismatched_keys", ())),
    }
    problems = [f"{kind} {', '.join(names[:5])}" for kind, names in wrong.items() if names]
    if problems:
        raise TeacherFilesError(
            f"teacher.path {folder}: its weights do not fit its config.json ({'; '.join(problems)}). "
            "Missing tensors would be random numbers; give a complete checkpoint of the model."
        )
    return model


def _real_names(keys: Any) -> list[str]:
    """Names that matter: tied twins of the embedding and the zero logits bias may be left out of a file."""
    harmless = ("embed_tokens.weight", "lm_head.weight", "final_logits_bias")
    return sorted(str(key) for key in keys if not str(key).endswith(harmless))


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
