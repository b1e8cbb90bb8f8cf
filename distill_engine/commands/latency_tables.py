"""The tables that `distill latency` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distill_engine.commands.evaluate import short_names

if TYPE_CHECKING:
    from distill_engine.evaluate.latency_rows import LatencyRow


def show(found: Sequence[LatencyRow], notes: Sequence[str]) -> None:
    """One table per precision, attention and mode; the fastest model of each case in bold."""
    console = Console()
    short = short_names([row.model for row in found])
    for note in notes:
        console.print(note, markup=False, highlight=False)
    for group in dict.fromkeys((row.dtype, row.attention, row.mode) for row in found):
        of_group = [row for row in found if (row.dtype, row.attention, row.mode) == group]
        console.print(_table(of_group, ", ".join(group), short))
    sizes = Table("model", "parameters", "weights MiB", "peak MiB", "dtype", box=SIMPLE_HEAD)
    for name, dtype in dict.fromkeys((row.model, row.dtype) for row in found if row.backend == "torch"):
        rows = [row for row in found if (row.model, row.dtype, row.backend) == (name, dtype, "torch")]
        peaks = [row.peak_mib for row in rows if row.peak_mib is not None]
        peak = f"{max(peaks):,.0f}" if peaks else "-"
        sizes.add_row(name, f"{rows[0].parameters:,}", f"{rows[0].weights_mib:,.1f}", peak, dtype)
    console.print(sizes)


def _table(found: Sequence[LatencyRow], title: str, short: dict[str, str]) -> Table:
    facts = f"{found[0].device}, KV cache {'on' if found[0].kv_cache else 'off'}, {found[0].rounds} rounds"
    table = Table(title=f"{title} ({facts}); ms until a batch is answered", title_justify="left", box=SIMPLE_HEAD)
    for header in ("model", "beams", "batch", "p50", "p90", "p99", "tokens/s", "tokens"):
        table.add_column(header, justify="left" if header == "model" else "right", no_wrap=header != "model")
    fastest = {(row.beams, row.batch): row.wait_ms_p50 for row in sorted(found, key=lambda row: -row.wait_ms_p50)}
    for row in sorted(found, key=lambda row: (row.beams, row.batch)):
        best = row.wait_ms_p50 == fastest[row.beams, row.batch]
        times = (f"{value:.1f}" for value in (row.wait_ms_p50, row.wait_ms_p90, row.wait_ms_p99))
        name = short[row.model] + (" (compiled)" if row.compiled else "")
        name += f" ({row.backend})" if row.backend != "torch" else ""
        speed = f"{row.tokens_per_second:,.0f}", f"{row.new_tokens:.1f}"
        table.add_row(name, str(row.beams), str(row.batch), *times, *speed, style="bold" if best else None)
    return table
