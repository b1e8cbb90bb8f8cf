"""Plots as SVG text for pages that need no network: no script, no font, no file beside the page."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]

_MOST_POINTS = 1500  # of one line; more cannot be told apart on a screen and makes pages heavy
_LOG_FROM = 30.0  # largest / smallest value from which a logarithmic axis shows more
_NARROW, _WIDE = (4.6, 2.5), (7.8, 3.0)  # inches
_LEGEND_INCHES = 2.0
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # powers of ten would need fonts for mathematics
_COLOURS = (
    "#3b6fb6", "#d1603d", "#3f9c6d", "#8b5fb0", "#b58b1c", "#4aa3b5", "#c2528b", "#7a7a7a", "#6b8e23", "#a0522d",
)  # fmt: skip


def lines(title: str, series: Series, unit: str = "", *, log: bool = False, wide: bool = False) -> str:
    """Values over steps, one line per name.

    unit  what the vertical axis says; the title names the value
    log   use a logarithmic axis where positive values span a factor of 30
    wide  a larger plot with the legend beside it, for many lines
    """

    def draw(axes: Axes) -> None:
        for index, (name, (steps, values)) in enumerate(series.items()):
            kept = _thinned(steps, values)
            marker = "o" if len(kept[0]) < 15 else ""
            axes.plot(*kept, color=_colour(index), label=name, marker=marker, markersize=3)
        finite = [value for _, values in series.values() for value in values if math.isfinite(value)]
        if log and finite and min(finite) > 0 and max(finite) / min(finite) > _LOG_FROM:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_PLAIN)
            axes.yaxis.set_minor_formatter(NullFormatter())
        _axes_of_steps(axes, unit)
        if wide and series:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        elif len(series) > 1:
            axes.legend(loc="best")

    return _svg(title, draw, _WIDE if wide else _NARROW, _LEGEND_INCHES if wide else 0.12)


def shares(title: str, series: Series) -> str:
    """Non-negative values over the same steps, stacked to 100 %."""

    def draw(axes: Axes) -> None:
        steps = next(iter(series.values()))[0]
        columns = [[max(0.0, v) if math.isfinite(v) else 0.0 for v in values] for _, values in series.values()]
        totals = [sum(column) or 1.0 for column in zip(*columns, strict=True)]
        stacked = [[100 * v / total for v, total in zip(column, totals, strict=True)] for column in columns]
        colours = [_colour(index) for index in range(len(columns))]
        axes.stackplot(steps, stacked, labels=list(series), colors=colours, linewidth=0)
        axes.set_ylim(0, 100)
        axes.margins(x=0)
        _axes_of_steps(axes, "%")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), reverse=True)

    return _svg(title, draw, _WIDE, _LEGEND_INCHES)


def heat(title: str, steps: Sequence[float], rows: Sequence[Sequence[float]]) -> str:
    """One row per layer pair (the first at the bottom), one column per record, colour by value."""

    def draw(axes: Axes) -> None:
        finite = [v for row in rows for v in row if math.isfinite(v) and v > 0]
        norm = LogNorm(min(finite), max(finite)) if finite and max(finite) > min(finite) else None
        extent = (steps[0], steps[-1] if len(steps) > 1 else steps[0] + 1, -0.5, len(rows) - 0.5)
        image = axes.imshow(rows, aspect="auto", origin="lower", extent=extent, norm=norm, cmap="viridis")
        axes.grid(False)
        axes.set_yticks(range(len(rows)))
        axes.set_ylabel("layer pair")
        axes.set_xlabel("step")
        figure = axes.get_figure()
        assert figure is not None, "the axes were made on one"
        bar = figure.colorbar(image, cax=axes.inset_axes((1.02, 0.0, 0.03, 1.0)))
        bar.set_ticks(LogLocator(subs=(1, 2, 5)) if norm is not None else AutoLocator())
        bar.minorticks_off()
        bar.formatter = _PLAIN

    return _svg(title, draw, (4.6, 1.5 + 0.22 * len(rows)), beside=0.7)


def frontier(
    title: str,
    points: Mapping[str, tuple[float, float]],
    spread: Mapping[str, tuple[float, float]],
    x_label: str,
    y_label: str,
) -> str:
    """Models as named points with the lower and upper end of x's `spread`; better is to the left and down."""

    def draw(axes: Axes) -> None:
        for index, (name, (x, y)) in enumerate(points.items()):
            low, high = spread[name]
            bar = [[max(0.0, x - low)], [max(0.0, high - x)]]
            axes.errorbar([x], [y], xerr=bar, fmt="o", markersize=7, capsize=3, color=_colour(index), zorder=3)
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(7, 5), fontsize=9)
        best = _not_beaten(list(points.values()))
        if len(best) > 1:
            axes.plot(*zip(*best, strict=True), color="#7a7a7a", linestyle="--", linewidth=1, zorder=1)
        axes.margins(0.25)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _svg(title, draw, (6.4, 3.8))


def _not_beaten(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both directions, from left to right."""
    kept = [one for one in points if not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in points)]
    return sorted(set(kept))


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _axes_of_steps(axes: Axes, unit: str) -> None:
    axes.set_xlabel("step")
    if unit:
        axes.set_ylabel(unit)


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most _MOST_POINTS evenly chosen points, the last one among them; gaps where a value is not finite."""
    stride = max(1, math.ceil(len(steps) / _MOST_POINTS))
    chosen = list(range(0, len(steps), stride))
    if chosen and chosen[-1] != len(steps) - 1:
        chosen.append(len(steps) - 1)
    return [steps[i] for i in chosen], [values[i] if math.isfinite(values[i]) else math.nan for i in chosen]


def _rectangle(size: tuple[float, float], beside: float) -> tuple[float, float, float, float]:
    """Where the axes lie, as shares of the figure; margins in inches. (Measuring texts instead takes twice as long.)"""
    width, height = size
    left, bottom, top = 0.78, 0.45, 0.3
    return left / width, bottom / height, (width - left - beside) / width, (height - bottom - top) / height


def _svg(title: str, draw: Callable[[Axes], None], size: tuple[float, float], beside: float = 0.12) -> str:
    """The `<svg>` element alone, the same text for the same data; `beside`: inches right of the axes."""
    # the salt makes ids inside the SVG repeatable, and different between the plots of one page
    style: Any = {**_STYLE, "svg.hashsalt": title}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        axes = figure.add_axes(_rectangle(size, beside))
        axes.set_title(title)
        draw(axes)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    return text[text.index("<svg") :]
