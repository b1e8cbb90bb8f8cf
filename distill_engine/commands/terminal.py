"""What the commands of `distill` and of the launcher share: how they speak, and options that many have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from distill_engine.cluster.exit_codes import BAD_INPUT, RETRY, may_pass

PluginOption = Annotated[
    list[str],
    typer.Option("--plugin", metavar="MODULE", help="Module or .py file that brings loss terms and so on; repeatable."),
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="a.b=value", help="Change one value of the recipe; may be repeated.")
]

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line on standard output that is taken literally: names from outside are never read as markup."""
    OUT.print(text, markup=False)


def tell(text: str) -> None:
    """The same on standard error, so that standard output stays what was asked for."""
    ERR.print(text, markup=False)


def refuse(error: Exception) -> NoReturn:
    """Say an error that the user can correct, and end with its exit code."""
    tell(f"{type(error).__name__}: {error}")
    raise typer.Exit(BAD_INPUT)


def end(error: Exception, kept: Path) -> NoReturn:
    """Exit code 74 for a disk that may be emptied or ranks that died, 78 for what is wrong itself. `kept`: the folder
    of what is finished."""
    from distill_engine.checkpoint.files import existing, write_failure

    if not may_pass(error):
        refuse(error)
    reason = write_failure(error, existing(kept)) if isinstance(error, OSError) else str(error)
    tell(f"{reason}. What is finished is kept in {kept}; the same command goes on from there.")
    raise typer.Exit(RETRY)
