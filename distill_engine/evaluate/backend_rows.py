"""One model in several programs: what each is worth, in one row of speed, size, equal replies and quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill_engine.evaluate.agreement import Prompts, agreement
from distill_engine.evaluate.latency_rows import Case, Program, Timing, summary

HEADLINE = Case("fixed")  # what a row's times are of: so many tokens exactly, greedily, one context at a time


@dataclass(frozen=True)
class BackendRow:
    """A model in one program.

    ms_per_reply, ms_p20, ms_p80  of HEADLINE: median and percentiles over the rounds
    tokens_per_second             at the median
    agreement                     share of `prompts` replies that are PyTorch's fp32 ones, token by token
    quality                       text metrics of the same replies by name; empty where there is no right answer
    mib_on_disk, memory_mib       as in export.backends
    """

    model: str
    backend: str
    device: str
    ms_per_reply: float
    ms_p20: float
    ms_p80: float
    tokens_per_second: float
    mib_on_disk: float
    memory_mib: float | None
    agreement: float
    prompts: int
    quality: Mapping[str, float]


def backend_rows(
    name: str,
    programs: Sequence[Program],
    timings: Mapping[str, Sequence[Timing]],
    tokenizer: Any,
    prompts: Prompts,
    new_tokens: int,
) -> list[BackendRow]:
    """One row per program; the first is PyTorch, which the others are compared with.

    timings  of HEADLINE by backend; programs without any give no row
    """
    made = []
    for program in programs:
        if not timings.get(program.backend):
            continue
        alike = agreement(programs[0].model, program.model, tokenizer, prompts, new_tokens)
        taken = summary([one.seconds for one in timings[program.backend]], new_tokens)
        made.append(
            BackendRow(
                model=name,
                backend=program.backend,
                device=program.model.device.type,
                ms_per_reply=taken.median_ms,
                ms_p20=taken.p20_ms,
                ms_p80=taken.p80_ms,
                tokens_per_second=taken.tokens_per_second,
                mib_on_disk=program.mib_on_disk,
                memory_mib=program.memory_mib,
                agreement=alike.share,
                prompts=alike.prompts,
                quality={metric: pair[1] for metric, pair in alike.metrics.items()},
            )
        )
    return made


def backend_table(
    rows: Sequence[BackendRow], shown: Mapping[str, str], metrics: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table.

    shown    each model's name as people read it
    metrics  those of `quality` that get a column, where there is one
    """
    metrics = [name for name in metrics if any(name in row.quality for row in rows)]
    header = ["model", "backend", "ms/reply", "p20 to p80", "tokens/s", "MiB on disk", "MiB in memory", "equal replies"]
    made = []
    for row in rows:
        memory = "-" if row.memory_mib is None else f"{row.memory_mib:,.0f}"
        cells = [shown[row.model], row.backend, f"{row.ms_per_reply:.1f}", f"{row.ms_p20:.1f} to {row.ms_p80:.1f}"]
        cells += [f"{row.tokens_per_second:,.0f}", f"{row.mib_on_disk:,.1f}", memory, f"{row.agreement:.1%}"]
        made.append([*cells, *(f"{row.quality[name]:.4g}" if name in row.quality else "-" for name in metrics)])
    return [*header, *(name.replace("_", " ") for name in metrics)], made
