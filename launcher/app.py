"""The command line's frame, and how its commands refuse."""

from __future__ import annotations

from typing import NoReturn

import typer

from distill_engine.cluster.exit_codes import BAD_INPUT
from distill_engine.commands.terminal import PluginOption, tell
from distill_engine.registry import RegistryError, load_plugins

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def refuse(text: object) -> NoReturn:
    """Say what is wrong and end with the code for bad input."""
    tell(str(text))
    raise typer.Exit(BAD_INPUT)


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
