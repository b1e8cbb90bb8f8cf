"""What is measured of a model's replies, and how rounds become one row."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from transformers import PreTrainedModel

Mode = Literal["fixed", "free"]


@dataclass(frozen=True)
class Case:
    """How replies are generated: with `beams` (1 is greedy), `batch` at a time, keys and values cached or not, the
    model's forward pass compiled by torch.compile or not."""

    mode: Mode
    beams: int = 1
    batch: int = 1
    kv_cache: bool = True
    compiled: bool = False


@dataclass(frozen=True)
class Timing:
    """One answer to one batch of contexts: seconds, generated tokens of all its replies, and memory that the
    accelerator needed beside the weights (MiB; None on a CPU)."""

    seconds: float
    tokens: int
    extra_mib: float | None = None


@dataclass(frozen=True)
class LatencyRow:
    """One model in one case. Times are milliseconds.

    wait_ms_*          from the contexts of a batch to the last of its replies: percentiles over the rounds, p50 the
                       median
    ms_per_reply       wait_ms_p50 / batch
    tokens_per_second  all generated tokens / all seconds
    new_tokens         mean tokens of a reply, end token included
    peak_mib           weights and what generation needed beside them at its peak; None on a CPU
    backend            the program that replies; of those beside PyTorch, `parameters` and `attention` are those of the
                       PyTorch model, and `weights_mib` is the size on disk
    """

    model: str
    parameters: int
    device: str
    dtype: str
    attention: str
    kv_cache: bool
    compiled: bool
    mode: Mode
    beams: int
    batch: int
    rounds: int
    new_tokens: float
    wait_ms_p20: float
    wait_ms_p50: float
    wait_ms_p80: float
    wait_ms_p90: float
    wait_ms_p99: float
    ms_per_reply: float
    tokens_per_second: float
    weights_mib: float
    peak_mib: float | None
    backend: str = "torch"


class Program(Protocol):
    """A model in one program, as `export.backends` opens it."""

    @property
    def backend(self) -> str:
        """The program's name."""

    @property
    def model(self) -> Any:
        """What generates."""

    @property
    def mib_on_disk(self) -> float:
        """Of its weights, as the program stores them."""

    @property
    def memory_mib(self) -> float | None:
        """That opening it and one reply added to this process; None where nobody knows."""


@dataclass(frozen=True)
class Variant:
    """A model of `measure` that is another one in another program.

    of  the PyTorch model's name there
    """

    of: str
    program: Program


@dataclass(frozen=True)
class Latency:
    """Milliseconds per reply of one model: median, 20th and 80th percentile, and tokens per second at the median."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    tokens_per_second: float


def rows(
    models: Mapping[str, PreTrainedModel],
    timings: Mapping[tuple[str, Case], Sequence[Timing]],
    variants: Mapping[str, Variant] | None = None,
) -> list[LatencyRow]:
    """One row per model and case, in the order of `timings`; `variants` says which of them are others in another
    program."""
    made = []
    for (name, case), measured in timings.items():
        variant = (variants or {}).get(name)
        if variant is None:
            made.append(_row(name, models[name], case, measured))
            continue
        row, program = _row(variant.of, models[variant.of], case, measured), variant.program
        own = {"device": program.model.device.type, "weights_mib": program.mib_on_disk, "peak_mib": None}
        made.append(replace(row, backend=program.backend, **own))
    return made


def _row(name: str, model: PreTrainedModel, case: Case, timings: Sequence[Timing]) -> LatencyRow:
    milliseconds = [1000.0 * one.seconds for one in timings]
    tokens = sum(one.tokens for one in timings)
    weights = sum(value.numel() * value.element_size() for value in model.parameters()) / 2**20
    extra = [one.extra_mib for one in timings if one.extra_mib is not None]
    p50 = _percentile(milliseconds, 50)
    return LatencyRow(
        model=name,
        parameters=sum(value.numel() for value in model.parameters()),
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(getattr(model.config, "_attn_implementation", "unknown")),
        kv_cache=case.kv_cache,
        compiled=case.compiled,
        mode=case.mode,
        beams=case.beams,
        batch=case.batch,
        rounds=len(timings),
        new_tokens=tokens / (len(timings) * case.batch),
        wait_ms_p20=_percentile(milliseconds, 20),
        wait_ms_p50=p50,
        wait_ms_p80=_percentile(milliseconds, 80),
        wait_ms_p90=_percentile(milliseconds, 90),
        wait_ms_p99=_percentile(milliseconds, 99),
        ms_per_reply=p50 / case.batch,
        tokens_per_second=1000.0 * tokens / sum(milliseconds),
        weights_mib=weights,
        peak_mib=weights + max(extra) if extra else None,
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    """Linear between neighbours, the smallest at 0 and the largest at 100."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def summary(seconds: Sequence[float], new_tokens: int) -> Latency:
    """Of the simplest comparison: seconds of replies of so many tokens each."""
    ordered = sorted(1000.0 * value for value in seconds)
    last = len(ordered) - 1
    median = statistics.median(ordered)
    return Latency(median, ordered[round(0.2 * last)], ordered[round(0.8 * last)], 1000.0 * new_tokens / median)
