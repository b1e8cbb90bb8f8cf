"""A kind of data that the package does not know: words to be said backwards, made up."""

from pydantic import Field

from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.kinds.protocol import Kind, Source
from distill_engine.recipe.problem import Problem
from distill_engine.registry import register


class ReversalSource(Source):
    """So many words, the same every time."""

    name: str = Field("reversal", description="Name in metrics.")
    words: list[str] = Field(min_length=1, description="The words.")
    rows: int = Field(20, description="How many examples.")


class Reversal(Kind):
    """Two words and the same two the other way round."""

    name, meaning, keep, metrics = "reversal", "words said backwards", "first", ("accuracy",)
    words = ("words", "backwards")
    Options = ReversalSource

    def has(self, source, split):
        return True

    def problems(self, source, root):
        if source.rows < 1:
            yield Problem("rows", f"is {source.rows}", "There is at least one")

    def files(self, source, split, root):
        return []

    def read(self, source, split, reading):
        for number in range(source.limit(split) or source.rows):
            one, other = (source.words[(number + step) % len(source.words)] for step in (0, 1))
            yield Episode((Turn(f"{one} {other}", f"{other} {one}"),))


REVERSAL = Reversal()
register("kinds", "reversal", "toy_kind:REVERSAL")
