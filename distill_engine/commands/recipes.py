"""`distill recipes`: the recipes that come with the program, wherever it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill_engine.cluster.exit_codes import BAD_INPUT
from distill_engine.recipe.shipped import HOME, copy_recipe
from distill_engine.recipe.shipped import recipes as shipped_recipes

_OUT = Console(soft_wrap=True, highlight=False)
_ERR = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(recipes)


def recipes(
    copy: Annotated[
        str | None, typer.Option("--copy", metavar="NAME", help="Copy this one, and the files that it names.")
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="Folder that gets the copy.")] = Path(),
) -> None:
    """List the recipes that come with the program, or copy one to start from."""
    if copy is None:
        table = Table("recipe", "what it is", title=str(HOME / "recipes"), title_justify="left")
        for name, meaning in shipped_recipes().items():
            table.add_row(name, meaning)
        _OUT.print(table)
        return
    try:
        made = copy_recipe(copy.removesuffix(".yaml"), to)
    except (ValueError, OSError) as error:
        _ERR.print(f"{type(error).__name__}: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from error
    for path in made:
        _OUT.print(str(path), markup=False)
