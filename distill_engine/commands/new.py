"""`distill new TEACHER DATA...`: a first recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from distill_engine.commands.terminal import refuse, say


def new(
    teacher: Annotated[str, typer.Argument(help="Folder or Hugging Face name of the teacher.")],
    data: Annotated[
        list[str],
        typer.Argument(
            help="Training file and perhaps a validation file; a folder; or a dataset's name.", metavar="DATA..."
        ),
    ],
    faster: Annotated[int, typer.Option("--faster", min=2, max=4, help="The decoder costs about 1/N: 2 or 4.")] = 2,
    out: Annotated[Path | None, typer.Option("--out", help="The recipe's file (default: named after both).")] = None,
) -> None:
    """Write a commented recipe that passes `distill check`, and say what it took and why."""
    from distill_engine.recipe.rules import read_recipe
    from distill_engine.setup.proposal import propose

    name = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{Path(teacher).name}_{Path(data[0]).stem}").strip("._-") or "student"
    target = out or Path(f"{name}.yaml")
    if target.exists():
        refuse(ValueError(f"{target} is there already. Name another file with --out."))
    try:
        made = propose(teacher, data, faster, name)
        target.write_text(made.text, encoding="utf-8")
        read_recipe(target)
    except (ValueError, OSError) as error:
        refuse(error)
    for reason in made.reasons:
        say(reason)
    say(f"{target} is written: distill check --recipe {target}")
