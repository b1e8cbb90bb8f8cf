"""The student's optimizer shards in a checkpoint, and how they are divided anew for other ranks.

ZeRO-2 lays the trained parameters of an optimizer group one after the other into a flat buffer (in an order of its own
under `round_robin_gradients`), fills it up with zeros, and cuts it into equal parts, one for each rank. A rank's shard
holds the fp32 weights of its part, without the zeros at the end, and the optimizer's moments of the same elements.
So a shard fits no other number of ranks and no other order, but its numbers do: they are copied to where they belong
now, bit for bit. Formulas as in `DeepSpeedZeroOptimizer.__init__` of DeepSpeed 0.19, and compared with the running one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    OPTIMIZER_STATE_DICT,
    PARAM_ALIGNMENT_PADDINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)
from torch import Tensor

_SHARD = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_MODEL = "mp_rank_00_model_states.pt"
_ZIP_START = b"PK\x03\x04"
_START_ALIGNMENT = 2  # elements, times ranks: DeepSpeed's nccl_start_alignment_factor
_ALIGNMENT_BYTES = 16  # of each parameter's begin, under zero_optimization.parameter_alignment
_OPEN_SHARDS = 8


class ShardError(RuntimeError):
    """The shards of a checkpoint cannot be divided anew."""


class Copy(NamedTuple):
    """So many elements of an old rank's part, from `old_start`, belong at `start` of the new part."""

    old_rank: int
    old_start: int
    start: int
    elements: int


@dataclass(frozen=True)
class FlatLayout:
    """Where one optimizer group's parameters lie in its flat buffer, and how that is cut.

    sizes      elements of each parameter, in the order of the group
    starts     where each begins in the buffer
    partition  elements of each rank's part
    """

    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    partition: int

    @classmethod
    def of(cls, sizes: Sequence[int], ranks: int, *, round_robin: bool, parameter_alignment: int) -> FlatLayout:
        """The layout that DeepSpeed makes. `parameter_alignment`: parameters begin at multiples of so many elements."""
        count = len(sizes)
        order = [i for rank in range(ranks) for i in range(rank, count, ranks)] if round_robin else range(count)
        starts, end = [0] * count, 0
        for index in order:
            starts[index] = -(-end // parameter_alignment) * parameter_alignment
            end = starts[index] + sizes[index]
        unit = _START_ALIGNMENT * ranks
        return cls(tuple(sizes), tuple(starts), -(-end // unit) * unit // ranks)

    def copies_from(self, old: FlatLayout, rank: int) -> Iterator[Copy]:
        """What part number `rank` of this layout takes from the parts of another layout of the same parameters."""
        begin, end = rank * self.partition, (rank + 1) * self.partition
        for size, start, old_start in zip(self.sizes, self.starts, old.starts, strict=True):
            place, stop = max(start, begin), min(start + size, end)
            while place < stop:
                old_rank, inside = divmod(old_start + place - start, old.partition)
                elements = min(stop - place, old.partition - inside)
                yield Copy(old_rank, inside, place - begin, elements)
                place += elements


def layouts_of(optimizer: Any) -> list[FlatLayout]:
    """How a running DeepSpeed ZeRO-2 optimizer has laid out its groups."""
    return [
        FlatLayout(
            tuple(int(parameter.numel()) for parameter in parameters),
            tuple(int(offsets[indices[number]]) for number in range(len(parameters))),
            int(partition),
        )
        for parameters, offsets, indices, partition in zip(
            optimizer.bit16_groups,
            optimizer.round_robin_bit16_offsets,
            optimizer.round_robin_bit16_indices,
            optimizer.partition_size,
            strict=True,
        )
    ]


class SavedShards:
    """The files of one DeepSpeed ZeRO-2 checkpoint, memory-mapped and read without running anything in them."""

    def __init__(self, folder: Path, allowed_globals: Collection[Callable[..., object]]) -> None:
        """`allowed_globals`: the classes that the files may name. ShardError if a rank's file is missing."""
        self._folder = folder
        self._allowed: list[Any] = list(allowed_globals)
        named = {int(match[1]): path for path in folder.glob("*.pt") if (match := _SHARD.fullmatch(path.name))}
        if sorted(named) != list(range(len(named))) or not named:
            raise ShardError(f"{folder} has optimizer shards of ranks {sorted(named)}: they are not all there.")
        self._paths = [named[rank] for rank in range(len(named))]
        self._opened = lru_cache(maxsize=_OPEN_SHARDS)(self._open)

    @property
    def ranks(self) -> int:
        """How many ranks wrote it."""
        return len(self._paths)

    def model(self) -> dict[str, Any]:
        """The file that holds the module and DeepSpeed's counters."""
        return self._open(self._folder / _MODEL)

    def optimizer(self, rank: int) -> dict[str, Any]:
        """The optimizer's state of a rank that wrote it."""
        state: dict[str, Any] = self._opened(self._paths[rank])[OPTIMIZER_STATE_DICT]
        return state

    def layouts(self, optimizer: Any) -> list[FlatLayout]:
        """How the same parameters as those of the running `optimizer` were laid out when this was written."""
        config = self._opened(self._paths[0])["ds_config"]
        return _layouts(optimizer, self.ranks, config["zero_optimization"])

    def _open(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP_START)) == _ZIP_START  # only such files can be mapped
        with torch.serialization.safe_globals(self._allowed):
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        return content


def _layouts(optimizer: Any, ranks: int, zero_config: Mapping[str, Any]) -> list[FlatLayout]:
    """The layouts of a running optimizer's parameters as DeepSpeed would make them for other ranks and flags."""
    round_robin = bool(zero_config.get("round_robin_gradients", False))
    aligned = bool(zero_config.get("parameter_alignment", False))
    made = []
    for parameters in optimizer.bit16_groups:
        unit = _ALIGNMENT_BYTES // parameters[0].element_size() if aligned else 1
        sizes = [int(parameter.numel()) for parameter in parameters]
        made.append(FlatLayout.of(sizes, ranks, round_robin=round_robin, parameter_alignment=unit))
    return made


def divided_anew(saved: SavedShards, optimizer: Any, rank: int, ranks: int) -> dict[str, Any]:
    """What the running `optimizer` of this rank takes up with `load_state_dict`, out of the shards of other ranks.

    No communication. ShardError if the shards are not those of the same parameters.
    """
    old, new = saved.layouts(optimizer), layouts_of(optimizer)
    flags = {name: getattr(optimizer, name) for name in ("round_robin_gradients", "parameter_alignment")}
    if new != _layouts(optimizer, ranks, flags):
        raise ShardError("this version of DeepSpeed divides optimizer state in a way that this program does not know.")
    first = saved.optimizer(0)
    _check_sizes(saved, first, old)
    taken = [_Group(saved, number, *pair, rank) for number, pair in enumerate(zip(old, new, strict=True))]
    return {
        **first,
        PARAM_ALIGNMENT_PADDINGS: optimizer.round_robin_bit16_padding,
        SINGLE_PARTITION_OF_FP32_GROUPS: [group.weights() for group in taken],
        BASE_OPTIMIZER_STATE: {
            **first[BASE_OPTIMIZER_STATE],
            "state": {number: taken[number].state() for number in first[BASE_OPTIMIZER_STATE]["state"]},
        },
    }


def _check_sizes(saved: SavedShards, first: Mapping[str, Any], layouts: Sequence[FlatLayout]) -> None:
    """Shards without their zeros are as long as the parameters together say."""
    groups = len(first[SINGLE_PARTITION_OF_FP32_GROUPS])
    if groups != len(layouts):
        raise ShardError(f"{groups} optimizer groups were saved, the student has {len(layouts)}.")
    for number, layout in enumerate(layouts):
        end = max(start + size for start, size in zip(layout.starts, layout.sizes, strict=True))
        for rank in (0, saved.ranks - 1):
            found = saved.optimizer(rank)[SINGLE_PARTITION_OF_FP32_GROUPS][number].numel()
            wanted = min(max(end - rank * layout.partition, 0), layout.partition)
            if found != wanted:
                raise ShardError(
                    f"the shard of rank {rank} has {found} elements of optimizer group {number}, not {wanted}: it is "
                    "of other parameters."
                )


class _Group:
    """One optimizer group of this rank, gathered from the shards."""

    def __init__(self, saved: SavedShards, number: int, old: FlatLayout, new: FlatLayout, rank: int) -> None:
        self._saved, self._number, self._old, self._new = saved, number, old, new
        self._copies = sorted(new.copies_from(old, rank))  # by old rank: each file is opened once

    def weights(self) -> Tensor:
        """[partition]: fp32 weights of this rank's part."""
        return self._gathered(lambda shard: shard[SINGLE_PARTITION_OF_FP32_GROUPS][self._number])

    def state(self) -> dict[str, Any]:
        """The optimizer's state of this rank's part: moments gathered, what is equal on all ranks as it is."""
        own = self._of(self._saved.optimizer(0))
        return {name: self._moment(name) if _is_part(value) else value for name, value in own.items()}

    def _moment(self, name: str) -> Tensor:
        return self._gathered(lambda shard: self._of(shard)[name])

    def _of(self, shard: Mapping[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = shard[BASE_OPTIMIZER_STATE]["state"][self._number]
        return state

    def _gathered(self, tensor_of: Callable[[Mapping[str, Any]], Tensor]) -> Tensor:
        out = torch.zeros(self._new.partition, dtype=tensor_of(self._saved.optimizer(0)).dtype)
        for old_rank, old_start, start, elements in self._copies:
            source = tensor_of(self._saved.optimizer(old_rank))
            out[start : start + elements] = source[old_start : old_start + elements]
        return out


def _is_part(value: Any) -> bool:
    """Whether a value of the optimizer's state has one number for each element (the count of steps has not)."""
    return isinstance(value, Tensor) and value.dim() > 0
