"""Reads a teacher from its folder, puts its weights where they are to live, and proves that they are there.

Under ZeRO-3 over all ranks transformers builds the model in shards, rank 0 reads the files, and every value crosses the
network once. For a node's shards or a copy per rank every rank reads them itself: the ranks of a node share the file
cache, and for a moment each holds the whole teacher in host memory.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors import safe_open
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

from distill_engine.cluster.exit_codes import may_pass
from distill_engine.engine.distributed import Ranks
from distill_engine.engine.ds_config import Placement
from distill_engine.engine.node_group import node_group


class TeacherError(RuntimeError):
    """The teacher cannot be loaded as it must be: complete, placed as asked and frozen."""


class TeacherFilesError(TeacherError):
    """The teacher's files are damaged or incomplete; or, with `may_pass`, a disk or memory failed while they were read.

    Raised on all ranks.
    """

    def __init__(self, text: str, may_pass: bool = False) -> None:
        super().__init__(text)
        self.may_pass = may_pass


def load_teacher(
    folder: Path, ds_config: Mapping[str, Any], dtype: torch.dtype, ranks: Ranks, placement: Placement
) -> PreTrainedModel:
    """The model, whole or in shards. Collective.

    Raises TeacherError if anything is missing or not placed as asked, LaunchError if nodes cannot be told apart.
    """
    if placement == "replica":
        whole: Any = _read(folder, dtype, ranks)  # the types of PreTrainedModel.to do not know devices
        _require_whole(whole)
        return whole.to(ranks.device)
    if placement == "node":
        group = node_group(ranks)
        model = _shard(_read(folder, dtype, ranks), ds_config, group, ranks.device)
        _require_sharded(model, dist.get_world_size(group))
        return model
    model = _read_sharded(folder, ds_config, dtype, ranks)
    _require_sharded(model, ranks.world_size)
    if placement == "offload":
        _require_on_host(model)
    return model


def _read_sharded(folder: Path, ds_config: Mapping[str, Any], dtype: torch.dtype, ranks: Ranks) -> PreTrainedModel:
    # transformers keeps only a weak reference to this object; while it lives, from_pretrained shards.
    # It must be gone before the student is touched, or the student would be sharded too.
    switch = HfDeepSpeedConfig(dict(ds_config))
    try:
        return _read(folder, dtype, ranks)
    finally:
        del switch
        unset_hf_deepspeed_config()
        gc.collect()


def _read(folder: Path, dtype: torch.dtype, ranks: Ranks) -> PreTrainedModel:
    """from_pretrained; what is wrong on any rank is said on all of them."""
    model, problem, passing = None, "", False
    try:
        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        problem = "; ".join(_misfits(folder, model, info))
    except Exception as error:  # whatever it is, the other ranks are waiting in `gather`
        problem, passing = " ".join(str(error).split()).rstrip(".") or type(error).__name__, may_pass(error)
    # under ZeRO-3 only rank 0 reads the values, so a tensor of the wrong shape is an error there and nowhere else
    found = [(text, passes) for text, passes in ranks.gather((problem, passing)) if text]
    problems = [text for text, _ in found]
    if problems and all(passes for _, passes in found):
        raise TeacherFilesError(f"teacher.path {folder}: its weights could not be read: {problems[0]}.", may_pass=True)
    if model is None or problems:
        raise TeacherFilesError(
            f"teacher.path {folder}: its weights cannot be read or do not fit its config.json: {problems[0]}. Missing "
            "tensors would be random numbers. Copy or download the model again, complete."
        )
    return model


def _shard(
    model: PreTrainedModel, ds_config: Mapping[str, Any], group: dist.ProcessGroup, device: torch.device
) -> PreTrainedModel:
    """Leave this rank its part of every parameter of a whole model; the ranks of the group have the others."""
    for buffer in model.buffers():  # these stay whole; sharding moves parameters only
        buffer.data = buffer.data.to(device)
    deepspeed.zero.Init(module=model, data_parallel_group=group, config_dict_or_path=dict(ds_config))
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


def _require_whole(model: PreTrainedModel) -> None:
    parts = [name for name, p in model.named_parameters() if hasattr(p, "ds_id")]
    if parts:
        raise TeacherError(
            f"{len(parts)} teacher parameters are sharded (first: {parts[0]}), but teacher.placement is replica: a "
            "ZeRO-3 configuration of another model reached from_pretrained; this is a defect of the engine."
        )


def _require_sharded(model: PreTrainedModel, sharers: int) -> None:
    """Whether each of `sharers` ranks holds its part, and no more, of every parameter."""
    whole = [name for name, p in model.named_parameters() if not hasattr(p, "ds_id")]
    if whole:
        raise TeacherError(
            f"{len(whole)} teacher parameters are not sharded (first: {whole[0]}). The ZeRO-3 configuration did "
            "not reach from_pretrained; this is a defect of the engine or of the installed transformers."
        )
    parameters: list[Any] = list(model.parameters())  # DeepSpeed adds the attributes ds_*
    total = sum(p.ds_numel for p in parameters)
    here = sum(p.ds_tensor.numel() for p in parameters)
    allowed = total / sharers + sharers * len(parameters)  # each shard is rounded up
    if here > allowed:
        raise TeacherError(f"this rank holds {here} of {total} teacher elements; expected about {total // sharers}.")


def _require_on_host(model: PreTrainedModel) -> None:
    parameters: list[Any] = list(model.parameters())
    elsewhere = sum(p.ds_tensor.device.type != "cpu" for p in parameters)
    if elsewhere:
        raise TeacherError(
            f"{elsewhere} of {len(parameters)} teacher shards are not in host memory, but teacher.placement is "
            "offload: this is a defect of the engine or of the installed DeepSpeed."
        )
