"""`distill list SEAM`: what can be chosen by name."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill_engine import registry
from distill_engine.commands.terminal import PluginOption, refuse
from distill_engine.registry import BUILT_IN, RegistryError, load_plugins


def plug_in(
    plugins: PluginOption = [],  # noqa: B006  typer copies it
) -> None:
    """Shrink big encoder-decoder language models into fast students."""
    try:
        load_plugins(plugins)
    except RegistryError as error:
        refuse(error)


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
        refuse(error)
    table = Table(*header)
    for row in found:
        table.add_row(*row)
    Console().print(table)
