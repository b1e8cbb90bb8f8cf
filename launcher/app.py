"""The command line's frame, and how its commands speak."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

from distill_engine.cluster.exit_codes import BAD_INPUT
from distill_engine.commands.plugins import PluginOption
from distill_engine.registry import RegistryError, load_plugins

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def refuse(text: object) -> NoReturn:
    """Say what is wrong and end with the code for bad input."""
    ERR.print(str(text), markup=False)
    raise typer.Exit(BAD_INPUT)


def say(text: str) -> None:
    """A line that is taken literally: names from outside are never read as markup."""
    OUT.print(text, markup=False)


@app.callback()
def plug_in(
    context: typer.Context,
    plugins: PluginOption = [],  # noqa: B006  typer copies it
) -> None:
    """Plan, submit, watch and end distillation runs on a Slurm cluster."""
    try:
        load_plugins(plugins)
    except RegistryError as error:
        refuse(error)
    context.obj = tuple(plugins)  # for commands that start another program with the same recipe
