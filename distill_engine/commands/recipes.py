"""`distill recipes`: the recipes that come with the program, wherever it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from distill_engine.commands.terminal import OUT, refuse, say
from distill_engine.recipe.shipped import HOME, copy_recipe
from distill_engine.recipe.shipped import recipes as shipped_recipes


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
        OUT.print(table)
        return
    try:
        made = copy_recipe(copy.removesuffix(".yaml"), to)
    except (ValueError, OSError) as error:
        refuse(error)
    for path in made:
        say(str(path))
