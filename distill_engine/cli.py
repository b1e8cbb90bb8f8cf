"""The `distill` command: no logic of its own, only calls. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill_engine.assembly.options import TrainOptions
from distill_engine.commands import parlai
from distill_engine.commands.cache import cache
from distill_engine.commands.chat import chat
from distill_engine.commands.dashboard import dashboard_app
from distill_engine.commands.data import data_app
from distill_engine.commands.evaluate import evaluate
from distill_engine.commands.export import export
from distill_engine.commands.latency import latency
from distill_engine.commands.listing import list_seam, plug_in
from distill_engine.commands.new import new
from distill_engine.commands.pseudo_label import pseudo_label
from distill_engine.commands.recipes import recipes
from distill_engine.commands.report import report, report_card
from distill_engine.commands.terminal import SetOption, refuse, say
from distill_engine.commands.wandb_sync import wandb_sync
from distill_engine.commands.watch import watch
from distill_engine.recipe.shipped import DEFAULT_DS_CONFIG, DEFAULT_RECIPE, DEFAULT_TEACHER_DS_CONFIG
from distill_engine.registry import plugins_first
from distill_engine.telemetry.quiet import quiet_libraries

app = typer.Typer(
    help="Shrink big encoder-decoder language models into fast students.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_OUT = Console()

RecipeOption = Annotated[Path, typer.Option("--recipe", help="Recipe (YAML): what is learnt.", show_default=True)]
DsConfigOption = Annotated[
    Path, typer.Option("--ds-config", "--ds_config", help="DeepSpeed JSON of the student: ZeRO, precision.")
]


@app.command()
def check(recipe: RecipeOption = DEFAULT_RECIPE, overrides: SetOption = []) -> None:  # noqa: B006  typer copies it
    """Check a recipe, its teacher's configuration, its tokenizer and its data, before any GPU time is spent."""
    ready = _prepared(recipe, overrides)
    table = Table("dataset", "training examples", "validation examples", title=f"{recipe}: no problems")
    valid = dict(zip(ready.valid_labels, map(len, ready.valid_datasets), strict=True))
    for label, dataset in zip(ready.dataset_labels, ready.train_datasets, strict=True):
        table.add_row(label, f"{len(dataset):,}", f"{valid.get(label, 0):,}")
    _OUT.print(table)
    splits = (
        ("train", ready.dataset_labels, ready.train_datasets),
        ("valid", ready.valid_labels, ready.valid_datasets),
    )
    for split, labels, datasets in splits:
        for label, dataset in zip(labels, datasets, strict=True):
            for line in dataset.left_out:
                say(f"{label}, {split}: {line}")
            _show_features(dataset)
    if ready.recipe.student.narrowed:
        from distill_engine.assembly.narrowing import told

        say(told(ready))
    _show_generation(ready)


@app.command()
def train(
    recipe: RecipeOption = DEFAULT_RECIPE,
    ds_config: DsConfigOption = DEFAULT_DS_CONFIG,
    teacher_ds_config: Annotated[
        Path, typer.Option("--teacher-ds-config", "--teacher_ds_config", help="DeepSpeed JSON of the teacher.")
    ] = DEFAULT_TEACHER_DS_CONFIG,
    overrides: SetOption = [],  # noqa: B006
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Run folder (default runs/<name>); the same one again resumes.")
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Go on although the checkpoint was written by another number of ranks.")
    ] = False,
) -> None:
    """Distil with one rank in this process.

    For several GPUs start the same program with a launcher:
    `deepspeed distill_engine/run.py --recipe FILE --ds_config FILE`.
    """
    from distill_engine.run import run_training

    options = TrainOptions(ds_config, teacher_ds_config, recipe, tuple(overrides), run_dir, resize)
    raise typer.Exit(run_training(options))


_COMMANDS = (
    export, evaluate, pseudo_label, latency, report, report_card, watch, wandb_sync, chat, recipes, new, cache,
)  # fmt: skip
for command in _COMMANDS:
    app.command()(command)
app.command("list")(list_seam)
app.callback()(plug_in)
app.add_typer(dashboard_app, name="dashboard")
app.add_typer(data_app, name="data")
parlai.register(app)


def _show_features(dataset: Any) -> None:
    """What features of sounds take on the disk, or would take."""
    from distill_engine.checkpoint.files import readable_bytes
    from distill_engine.data.audio.clips import SpeechDataset
    from distill_engine.data.audio.stored import bytes_of

    if not isinstance(dataset, SpeechDataset):
        return
    title, sounds = f"features of {dataset.source}", f"{len(dataset):,} sounds"
    if dataset.stored is not None:
        say(f"{title}: {readable_bytes(dataset.stored.size)} are kept for {sounds}")
    else:
        say(f"{title}: computed each time; {sounds} would take about {readable_bytes(bytes_of(dataset))}")


def _show_generation(ready: Any) -> None:
    """How the student and its export generate, and what of that is not the teacher's."""
    from distill_engine.models.generation_settings import shown_settings

    table = Table("generation setting", "value", "from", title="how the student generates, and its export")
    for row in shown_settings(ready.generation):
        table.add_row(*map(Text, row))
    _OUT.print(table)
    for note in ready.generation.notes:
        say(f"generation: {note}")


def _prepared(recipe: Path, overrides: list[str]) -> Any:
    from distill_engine.recipe.rules import read_recipe
    from distill_engine.setup.prepare import prepare

    try:
        return prepare(read_recipe(recipe, overrides), recipe)
    except ValueError as error:
        refuse(error)


def main() -> None:
    """Console script."""
    quiet_libraries(0)  # before any command imports torch and transformers
    app(plugins_first(sys.argv[1:]), prog_name="distill")


if __name__ == "__main__":
    main()
