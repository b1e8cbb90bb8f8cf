"""How the examples of an optimizer step are shared out among ranks, at the start and on another number of ranks.

A step takes the next accumulation_steps * world_size micro-batches of the training order (data.buckets). As long as
what they hold together stays, every step sees the same examples on any number of ranks: with a fixed number of rows
that is a number of examples, and micro-batches may be cut anew; under a token budget the micro-batches themselves are
part of the order, and only their number can be divided.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill_engine.data.errors import DataError

_SIZES_NAMED = 24


@dataclass(frozen=True)
class BatchSplit:
    """What each rank does in an optimizer step.

    per_rank            examples of one micro-batch (without a token budget)
    accumulation_steps  micro-batches of one rank
    world_size          ranks
    token_budget        whether batch.max_tokens decides what a micro-batch holds
    """

    per_rank: int
    accumulation_steps: int
    world_size: int
    token_budget: bool = False

    @property
    def per_step(self) -> int:
        """Examples of a step, or micro-batches under a token budget, all ranks together."""
        return self.accumulation_steps * self.world_size * (1 if self.token_budget else self.per_rank)

    @property
    def identity(self) -> dict[str, int]:
        """What stays as long as a run lives, on any number of ranks: `per_step` under its name."""
        return {"micro_batches_per_step" if self.token_budget else "examples_per_step": self.per_step}

    def __str__(self) -> str:
        """For people: 48 examples a step = 12 per rank x 2 accumulation steps x 2 ranks."""
        rows = "" if self.token_budget else f"{self.per_rank} per rank x "
        shares = f"{rows}{self.accumulation_steps} accumulation steps x {self.world_size} ranks"
        return f"{self.per_step} {self._what} a step = {shares}"

    @property
    def _what(self) -> str:
        return "micro-batches" if self.token_budget else "examples"

    def shared_by(self, world_size: int, per_step: int) -> BatchSplit:
        """A step of `per_step` shared out among other ranks: this `per_rank` or the next smaller one that divides it.

        DataError, with the numbers of ranks that would do, where the ranks cannot get equal shares.
        """
        if per_step % world_size:
            raise DataError(self._indivisible(world_size, per_step))
        each = per_step // world_size
        if self.token_budget:
            return BatchSplit(self.per_rank, each, world_size, True)
        rows = max(rows for rows in range(1, min(self.per_rank, each) + 1) if each % rows == 0)
        return BatchSplit(rows, each // rows, world_size)

    def _indivisible(self, world_size: int, per_step: int) -> str:
        sizes = [size for size in range(1, per_step + 1) if per_step % size == 0]
        near = sorted(sorted(sizes, key=lambda size: abs(size - world_size))[:_SIZES_NAMED])
        rule = (
            "Under batch.max_tokens a step is a number of micro-batches, the same on every rank"
            if self.token_budget
            else "Every rank takes equally many examples of a step"
        )
        return (
            f"A step of this run has {per_step} {self._what}, which {world_size} ranks cannot share. "
            f"{rule}. Start it with one of these numbers of ranks: {', '.join(map(str, near))}"
            f"{' (there are more)' if len(near) < len(sizes) else ''}."
        )
