"""`distill watch`: a run's progress in the terminal, from anywhere that sees its folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner

from distill_engine.commands.terminal import refuse

if TYPE_CHECKING:
    from distill_engine.reports.history import RunHistory

_WHOLE = 60  # lines: a picture that scrolls may be as long as it likes
_READING_SHARE = 0.1  # of the time at most: a history of a hundred megabytes is read less often


def watch(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    once: Annotated[bool, typer.Option("--once", help="Show one picture and end.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the run.")] = 2.0,
) -> None:
    """Watch a run in the terminal; ends when nobody trains it any more. Needs no account and no network."""
    from distill_engine.reports.history import read_run

    console = Console()
    try:
        history = read_run(run)
        if once or not history.running:
            console.print(_view(history, Spinner("dots"), _WHOLE))
            return
        _follow(run, history, every, console)
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:  # the usual way to stop watching; the run goes on
        raise typer.Exit(0) from None


def _follow(run: Path, history: RunHistory, every: float, console: Console) -> None:
    """Read and show until the run's lock is free. Without a terminal (a pipe) only the last picture is printed."""
    from distill_engine.reports.history import read_run

    spinner = Spinner("dots", style="cyan")
    held = [history]

    def picture() -> RenderableType:
        return _view(held[0], spinner, console.height)

    with Live(console=console, get_renderable=picture, refresh_per_second=4):
        while held[0].running:
            started = time.monotonic()
            held[0] = read_run(run)
            reading = time.monotonic() - started
            if held[0].running:
                time.sleep(max(every, reading / _READING_SHARE))


def _view(history: RunHistory, spinner: Spinner, height: int) -> RenderableType:
    from distill_engine.reports.watch_view import watch_view

    return watch_view(history, spinner, height)
