"""Reads a teacher from its folder, puts its weights where they are to live, and proves that they are there.

Under ZeRO-3 over all ranks transformers builds the model in shards, rank 0 reads the files, and every value crosses the
network once; models that it cannot build so are read whole first. For a node's shards or a copy per rank every rank
reads them itself: the ranks of a node share the file cache, and for a moment each holds the whole teacher in host
memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

from distill_engine.cluster.exit_codes import may_pass
from distill_engine.engine.config import Placement
from distill_engine.engine.distributed import Ranks
from distill_engine.engine.node_group import node_group
from distill_engine.models.loading import Checkpoint, problem_of_teacher

T = TypeVar("T")


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
    checkpoint = _checked(folder, ranks)
    if checkpoint.own_head or checkpoint.computes_parameters:  # from_pretrained can do neither in shards
        model = _shard(_load(checkpoint, dtype, ranks), ds_config, dist.group.WORLD, ranks.device)
    else:
        model = _read_sharded(checkpoint, ds_config, dtype, ranks)
    _require_sharded(model, ranks.world_size)
    if placement == "offload":
        _require_on_host(model)
    return model


def _read_sharded(
    checkpoint: Checkpoint, ds_config: Mapping[str, Any], dtype: torch.dtype, ranks: Ranks
) -> PreTrainedModel:
    # transformers keeps only a weak reference to this object; while it lives, from_pretrained shards.
    # It must be gone before the student is touched, or the student would be sharded too.
    switch = HfDeepSpeedConfig(dict(ds_config))
    try:
        return _load(checkpoint, dtype, ranks)
    finally:
        del switch
        unset_hf_deepspeed_config()
        gc.collect()


def _read(folder: Path, dtype: torch.dtype, ranks: Ranks) -> PreTrainedModel:
    return _load(_checked(folder, ranks), dtype, ranks)


def _checked(folder: Path, ranks: Ranks) -> Checkpoint:
    """No rank begins to load, which is collective for shards, before all have checked."""
    return _on_all(lambda: Checkpoint(folder), folder, ranks)


def _load(checkpoint: Checkpoint, dtype: torch.dtype, ranks: Ranks) -> PreTrainedModel:
    return _on_all(lambda: checkpoint.load(dtype), checkpoint.folder, ranks)


def _on_all(read: Callable[[], T], folder: Path, ranks: Ranks) -> T:
    """What `read` gives; what is wrong on any rank is said on all of them. Collective."""
    result, problem, passing = None, "", False
    try:
        result = read()
    except Exception as error:  # whatever it is, the other ranks are waiting in `gather`
        passing = may_pass(error)
        problem = problem_of_teacher(folder, error, passing)
    found = [(text, passes) for text, passes in ranks.gather((problem, passing)) if text]
    if result is None or found:
        raise TeacherFilesError(found[0][0], may_pass=all(passes for _, passes in found))
    return result


def _shard(
    model: PreTrainedModel, ds_config: Mapping[str, Any], group: dist.ProcessGroup | None, device: torch.device
) -> PreTrainedModel:
    """Leave this rank its part of every parameter of a whole model; the ranks of the group have the others."""
    for buffer in model.buffers():  # these stay whole; sharding moves parameters only
        buffer.data = buffer.data.to(device)
    deepspeed.zero.Init(module=model, data_parallel_group=group, config_dict_or_path=dict(ds_config))
    return model


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
