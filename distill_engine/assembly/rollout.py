"""Whose text a run learns on, from what was prepared."""

from __future__ import annotations

from typing import Any

from distill_engine.engine.distributed import Ranks
from distill_engine.registry import load
from distill_engine.rollouts.protocol import Rollout, RolloutParts
from distill_engine.setup.prepare import Prepared


def rollout_of(ready: Prepared, ranks: Ranks) -> Rollout:
    """As rollout.source says."""
    section, layout, said = ready.recipe.rollout, ready.layout, ready.generation.values
    ends = tuple(sorted({layout.end_id, *_ids(said.get("eos_token_id"))}))
    never = {*_ids(said.get("suppress_tokens")), layout.pad_id}.difference(ends)
    parts = RolloutParts(
        seed=ready.recipe.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        section=section,
        new_tokens=section.new_tokens or ready.recipe.data.label_tokens,
        layout=layout,
        end_ids=ends,
        suppressed=tuple(sorted(never)),
        forced=said.get("forced_bos_token_id"),
        pad_to_multiple_of=ready.recipe.batch.pad_to_multiple_of,
        max_tokens=ready.recipe.batch.max_tokens,
    )
    rollout: Rollout = load("rollouts", section.source).open(parts)
    return rollout


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [int(value)]
