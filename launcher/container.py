"""CONTAINER=IMAGE -> what starts a job step: flags of srun (pyxis), or words before the interpreter (apptainer).

The job script itself stays outside: it talks to Slurm. Only what srun starts on the nodes runs in the container.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from distill_engine.commands.terminal import say
from launcher.app import refuse

RUNTIMES = ("pyxis", "apptainer")
_APPTAINER_SOURCES = ("docker://", "oras://", "library://", "shub://")


@dataclass(frozen=True)
class Container:
    """How to start a program inside an image.

    srun    flags for srun; none where apptainer is started as the step's program
    inside  words before the program's own
    """

    srun: tuple[str, ...]
    inside: tuple[str, ...]


def container(image: str, folders: Iterable[Path], *, workdir: Path, runtime: str = "", more: str = "") -> Container:
    """What stands around a program that runs in `image`.

    folders  seen inside at the same path: code, run folder, recipe, data
    runtime  pyxis or apptainer; empty: apptainer for .sif files and its own addresses, else pyxis
    more     further mounts as the user writes them: SRC or SRC:DST, comma-separated

    Raises ValueError for an unknown runtime and for a folder whose name neither runtime can mount.
    """
    is_apptainers = image.endswith(".sif") or image.startswith(_APPTAINER_SOURCES)
    chosen = runtime or ("apptainer" if is_apptainers else "pyxis")
    if chosen not in RUNTIMES:
        raise ValueError(f"CONTAINER_RUNTIME is {chosen!r}. It must be one of {', '.join(RUNTIMES)}, or not set.")
    mounts = list(dict.fromkeys(str(folder) for folder in folders))
    odd = [name for name in mounts if set(name) & set(",:\n")]
    if odd:
        raise ValueError(f"{odd[0]!r} cannot be mounted: a comma, a colon or a line break separates mounts. Rename it.")
    given = [mount for mount in more.split(",") if mount]
    if chosen == "apptainer":
        binds = ",".join([*mounts, *given])
        return Container((), ("apptainer", "exec", "--nv", "--bind", binds, "--pwd", str(workdir), image))
    pairs = [mount if ":" in mount else f"{mount}:{mount}" for mount in [*mounts, *given]]
    flags = (f"--container-image={image}", f"--container-mounts={','.join(pairs)}", f"--container-workdir={workdir}")
    return Container(flags, ())


def container_words(
    image: Annotated[str, typer.Argument(help="Image, as CONTAINER names it.")],
    folders: Annotated[list[Path], typer.Argument(help="Folders that must be seen inside.")],
    runtime: Annotated[str, typer.Option(envvar="CONTAINER_RUNTIME", help="pyxis or apptainer.")] = "",
    more: Annotated[str, typer.Option("--mounts", envvar="CONTAINER_MOUNTS", help="SRC or SRC:DST, by commas.")] = "",
) -> None:
    """For job scripts: one word a line, srun's flags, an empty line, then what stands before the program."""
    try:
        words = container(image, folders, workdir=Path.cwd(), runtime=runtime, more=more)
    except ValueError as error:
        refuse(f"slurm: {error}")
    say("\n".join([*words.srun, "", *words.inside]))
