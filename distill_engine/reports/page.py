"""One HTML page in one file: styles inside, plots inside, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from re import sub

_MANY_COLUMNS = 9  # from more on a table is set closer, to fit the width of a laptop's screen
_LONG_NAME = 20  # characters
_STYLE = """
:root { color-scheme: light dark; --line: #8883; --soft: #8881; --quiet: #6b6b6b; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --quiet: #9a9a9a; --card: #191919; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.2rem; }
p.quiet, caption, .tile span { color: var(--quiet); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.6rem, 1fr)); gap: .6rem; margin: 1.2rem 0; }
.tile { display: flex; flex-direction: column; padding: .5rem .8rem; border: 1px solid var(--line); }
.tile, figure { border-radius: 8px; }
.tile span { font-size: .85rem; } .tile b { font-size: 1.25rem; margin-top: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: .8rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .3rem; }
figure.wide { grid-column: 1 / -1; overflow-x: auto; } figure.wide svg { min-width: 36rem; }
figure svg { width: 100%; height: auto; display: block; }
/* plots are drawn dark on white; this turns lightness round and keeps the hues */
@media (prefers-color-scheme: dark) { figure svg { filter: invert(.9) hue-rotate(180deg); } }
figcaption { font-size: .8rem; color: var(--quiet); padding: 0 .5rem .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.close { font-size: .87rem; } .close th, .close td { padding: .25rem .35rem; }
tr.best td { font-weight: 600; background: var(--soft); }
pre { background: var(--soft); padding: .8rem; border-radius: 8px; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
td.text { white-space: pre-wrap; min-width: 12rem; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML document; `body` holds finished HTML, `title` is plain text."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """A heading of plain text."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, quiet: bool = False) -> str:
    """A paragraph of plain text; quiet ones are grey."""
    kind = ' class="quiet"' if quiet else ""
    return f"<p{kind}>{escape(text)}</p>"


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """Large values with small labels, from (label, value) pairs."""
    made = [f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b></div>' for label, value in facts]
    return f'<div class="tiles">{"".join(made)}</div>'


def plot(svg: str, caption: str = "", *, wide: bool = False) -> str:
    """One plot with what it shows in words; `svg` is finished markup, `caption` plain text; `wide`: as wide as the
    page."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure{' class=wide' if wide else ''}>{svg}{below}</figure>"


def plots(made: Sequence[str]) -> str:
    """Several `plot`s beside each other, as many as fit."""
    return f'<div class="plots">{"".join(made)}</div>'


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: bool | Collection[int] = True,
    best: int | None = None,
) -> str:
    """A table of plain texts; `numbers`: columns set to the right, True for all but the first; `best`: a row to mark.
    Where there are many columns, header and long names may break behind `/`, `_` and `-`."""
    crowded = len(header) > _MANY_COLUMNS

    def kind(column: int) -> str:
        right = numbers if isinstance(numbers, bool) else column in numbers
        return "" if column == 0 else ' class="number"' if right else ' class="text"'

    def inside(tag: str, column: int, cell: str) -> str:
        breaks = crowded and (tag == "th" or (column == 0 and len(cell) > _LONG_NAME))
        return sub(r"(?<=\w[/_-])(?=\w)", "<wbr>", escape(cell)) if breaks else escape(cell)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{kind(i)}>{inside(tag, i, cell)}</{tag}>" for i, cell in enumerate(row))

    lines = [f"<tr{' class=best' if index == best else ''}>{cells('td', row)}</tr>" for index, row in enumerate(rows)]
    look = ' class="close"' if crowded else ""
    return f'<div class="scroll"><table{look}><tr>{cells("th", header)}</tr>{"".join(lines)}</table></div>'


def folded(summary: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return folded_html(summary, f"<pre>{escape(text)}</pre>")


def folded_html(summary: str, inside: str) -> str:
    """Finished HTML that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"
