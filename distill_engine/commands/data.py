"""`distill data`: download dialogue datasets, and look at what a model will read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from distill_engine.cluster.exit_codes import FAILED
from distill_engine.commands.data_show import show
from distill_engine.commands.terminal import ERR, refuse, say, tell

if TYPE_CHECKING:
    from distill_engine.data.fetch.archives import Archive
    from distill_engine.data.fetch.dataset import Origin

data_app = typer.Typer(help="Dialogue datasets: download them, look at them.", no_args_is_help=True)


data_app.command()(show)


@data_app.command()
def fetch(
    datasets: Annotated[
        list[str],
        typer.Argument(
            help="blended_skill_talk, wizard_of_wikipedia, convai2, empathetic_dialogues; or all.", metavar="DATASET..."
        ),
    ],
    root: Annotated[Path, typer.Option("--root", help="Folder of the datasets, ParlAI's `data`; then set data.root.")],
    url_base: Annotated[
        str | None, typer.Option("--url-base", help="Mirror, in place of http://parl.ai/downloads.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="Address of the archive; for one dataset.")] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="A copy of the archive on this machine; for one dataset.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", help="Checksum of an archive of your own making; for one dataset.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Fetch again what is there; put its files in place of others.")
    ] = False,
) -> None:
    """Download original dataset archives, check them and unpack them into ParlAI's folder layout.

    A download that broke off goes on where it stopped. A dataset is there as a whole or not at all.
    """
    from distill_engine.data.errors import DataError
    from distill_engine.data.fetch.archives import BASE_ADDRESS, archives_of
    from distill_engine.data.fetch.dataset import Origin

    try:
        wanted = archives_of(datasets)
        _check_options(len(wanted), url_base, url, archive, sha256)
    except DataError as error:
        refuse(error)
    failed = False
    for one in wanted:
        origin = Origin(url or one.url(url_base or BASE_ADDRESS), sha256 or one.sha256, archive)
        try:
            _fetch_one(one, root, origin, replace)
        except DataError as error:  # the other datasets can still be had
            tell(f"{type(error).__name__}: {error}")
            failed = True
    if failed:
        raise typer.Exit(FAILED)


def _check_options(
    datasets: int, url_base: str | None, url: str | None, archive: Path | None, sha256: str | None
) -> None:
    """Raises DataError for options that contradict each other or the number of datasets."""
    from distill_engine.data.errors import DataError

    for_one = {"--url": url, "--archive": archive, "--sha256": sha256}
    given = [option for option, value in for_one.items() if value is not None]
    if datasets > 1 and given:
        raise DataError(f"{', '.join(given)} stand for one archive, but {datasets} datasets are named. Name one.")
    sources = [name for name, value in {"--url-base": url_base, "--url": url, "--archive": archive}.items() if value]
    if len(sources) > 1:
        raise DataError(f"{' and '.join(sources)} both say where the archive is. Give one of them.")
    if archive is not None and not archive.is_file():
        raise DataError(f"--archive is {archive}, which is no file. Name the downloaded archive.")
    if sha256 is not None and re.fullmatch("[0-9a-f]{64}", sha256) is None:
        raise DataError(f"--sha256 is {sha256!r}. A checksum is 64 digits from 0-9a-f. Take it from `sha256sum FILE`.")


def _fetch_one(archive: Archive, root: Path, origin: Origin, replace: bool) -> None:
    from distill_engine.data.fetch.dataset import fetch

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=ERR, transient=True) as bar:
        line = bar.add_task(archive.dataset, total=None)
        done = fetch(
            archive,
            root,
            origin,
            replace=replace,
            progress=lambda so_far, total: bar.update(line, completed=so_far, total=total),
            say=lambda message: bar.update(line, description=f"{archive.dataset}: {message}"),
        )
    what = "is there already" if done.was_there else "is complete"
    say(f"{archive.dataset} {what}: {done.folder} ({len(done.files)} files)")
