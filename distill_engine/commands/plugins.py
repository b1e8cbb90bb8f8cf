"""The option `--plugin`, of `distill` and of the launcher."""

from typing import Annotated

import typer

PluginOption = Annotated[
    list[str],
    typer.Option("--plugin", metavar="MODULE", help="Module or .py file that brings loss terms and so on; repeatable."),
]
