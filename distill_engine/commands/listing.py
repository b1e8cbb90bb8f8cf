"""`distill list SEAM`: what can be chosen by name."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from distill_engine import registry
from distill_engine.cluster.exit_codes import BAD_INPUT
from distill_engine.commands.plugins import PluginOption
from distill_engine.registry import BUILT_IN, RegistryError, load_plugins

_ERR = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add the command, and `--plugin` for every command."""
    app.command("list")(list_seam)
    app.callback()(plug_in)


def plug_in(
    plugins: PluginOption = [],  # noqa: B006  typer copies it
) -> None:
    """Shrink big encoder-decoder language models into fast students."""
    try:
        load_plugins(plugins)
    except RegistryError as error:
        _refuse(error)


def list_seam(
    seam: Annotated[str, typer.Argument(metavar="SEAM", help=f"One of: {', '.join(BUILT_IN)}.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table that the docs have.")] = False,
) -> None:
    """What can be chosen by name: built in, from installed packages, from --plugin."""
    try:
        header, *found = registry.table(seam)
        if markdown:
            typer.echo(registry.markdown(seam))
            return
    except RegistryError as error:
        _refuse(error)
    table = Table(*header)
    for row in found:
        table.add_row(*row)
    Console().print(table)


def _refuse(error: Exception) -> NoReturn:
    _ERR.print(f"{type(error).__name__}: {error}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(BAD_INPUT)
