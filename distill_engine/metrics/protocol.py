"""What a metric is: of predicted tokens, or of generated texts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from distill_engine.metrics.scores import Scores

Better = Literal["min", "max", "neither"]
Given = Literal["student", "agreement", "teacher", "divergence"]


class TokenMetric(Protocol):
    """A number of how tokens are predicted, teacher-forced.

    Validation and `distill evaluate` call `sums` after each forward pass and `value` once all ranks are added up: for
    each dataset, and for all datasets together. It is this small because adding up, averaging over datasets, records,
    charts, `best` and patience are the same for all metrics.

    Loaded without torch: import it inside `sums` if a tensor's methods are not enough. Made once, shared, without
    state.

    name     in logs and recipes; the name it is registered by
    unit     of the value; empty for a plain number
    better   which way; neither: a fact that cannot choose the best student unless the recipe says a direction
    meaning  half a sentence for tables
    needs    student: its own scores; agreement: the teacher's best tokens as well; teacher: how the teacher itself
             predicts the labels (validation only); divergence: at temperature 1 (`distill evaluate` only). Without
             what it needs a metric is left out
    columns  how many sums there are
    parlai   ParlAI's name, which `distill evaluate` shows, where it is another one
    short    what one line of a terminal and a crowded table call it; empty: it is not in them
    """

    name: str
    unit: str
    better: Better
    meaning: str
    needs: Given = "student"
    columns: int = 2
    parlai: str = ""
    short: str = ""
    measures: Literal["tokens"] = "tokens"

    def sums(self, scores: Scores) -> Sequence[Tensor]:
        """`columns` tensors [B]: what each example of a micro-batch adds."""
        ...

    def value(self, sums: Sequence[float]) -> float:
        """Of the sums over examples; there is at least one label token. The first over the second, where not said."""
        return sums[0] / sums[1]


class TextMetric(Protocol):
    """A number of how good generated texts are.

    Called once for the texts of each dataset. It is this small because generating, sharing the work, averaging over
    datasets, records, charts, `best` and patience are the same for all metrics. Made once, shared, without state.

    name, unit, better, meaning, short  as a TokenMetric's
    pooled   of many texts together (BLEU): over several datasets it is the value of all texts, not the mean of values
    libraries  modules that it needs beside the engine's own (extra `metrics`)
    """

    name: str
    unit: str
    better: Better
    meaning: str
    pooled: bool = False
    libraries: tuple[str, ...] = ()
    short: str = ""
    measures: Literal["texts"] = "texts"

    def missing(self) -> str:
        """Why it cannot be computed here, as the continuation of its name; empty where it can. It is left out then,
        and no recipe may choose it."""
        missing = [name for name in self.libraries if not find_spec(name)]
        if not missing:
            return ""
        return f"needs the package {' and '.join(missing)}. Install it with `pip install 'distill-engine[metrics]'`"

    def value(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Of at least one text, and the right answers to each, at least one."""
        ...
