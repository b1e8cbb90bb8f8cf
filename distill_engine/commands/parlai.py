"""`distill import-parlai` and `distill recipe-from-parlai`: what a user of ParlAI brings along."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill_engine.commands.terminal import refuse, say

if TYPE_CHECKING:
    from distill_engine.interop.parlai.importer import Imported

FileOption = Path | None


def register(app: typer.Typer) -> None:
    """Add both commands to the program."""
    app.command()(import_parlai)
    # a ParlAI flag is no option of ours, whether `--` was put in front of them or not
    flags = {"ignore_unknown_options": True, "allow_interspersed_args": False}
    app.command(context_settings=flags)(recipe_from_parlai)


def import_parlai(
    model: Annotated[Path, typer.Argument(help="ParlAI's model file; .opt and .dict are looked for beside it.")],
    out: Annotated[Path, typer.Argument(help="New folder for the Hugging Face model.")],
    opt: Annotated[FileOption, typer.Option("--opt", help="The options; default: MODEL.opt.")] = None,
    dictionary: Annotated[FileOption, typer.Option("--dict", help="The dictionary; default: MODEL.dict.")] = None,
    bpe_vocab: Annotated[
        FileOption, typer.Option("--bpe-vocab", help="The BPE's vocabulary; gpt2 models: ParlAI's gpt2/encoder.json.")
    ] = None,
    bpe_merges: Annotated[
        FileOption, typer.Option("--bpe-merges", help="The BPE's merges; gpt2 models: ParlAI's gpt2/vocab.bpe.")
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Also read old files that hold more than tensors. Code hidden in such a file then runs with your "
            "rights: only for files whose maker you trust.",
        ),
    ] = False,
) -> None:
    """Convert a ParlAI model (transformer/generator, bart) into a Hugging Face folder: same tensors, same token ids."""
    from distill_engine.interop.parlai.importer import import_parlai as convert
    from distill_engine.interop.parlai.source import SourceFiles

    try:
        imported = convert(SourceFiles(model, opt, dictionary, bpe_vocab, bpe_merges), out, allow_pickle=allow_pickle)
    except (ValueError, OSError) as error:
        refuse(error)
    say(_summary(imported))


def recipe_from_parlai(
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAGS", help="The flags of a `parlai train_model` command.")
    ] = None,
    opt: Annotated[FileOption, typer.Option("--opt", help="Start from a model's .opt file; flags win over it.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The recipe's name; default: after --model-file.")] = None,
) -> None:
    """Print the recipe that is equivalent to a ParlAI training command, and why a flag has no equivalent."""
    from distill_engine.interop.parlai.options.command_line import read_command
    from distill_engine.interop.parlai.options.errors import ParlaiError
    from distill_engine.interop.parlai.options.render import recipe_yaml
    from distill_engine.interop.parlai.options.translate import translate

    try:
        if not flags and opt is None:
            raise ParlaiError(
                "There is nothing to translate. Put the flags of a ParlAI command behind --, or name a model's .opt "
                "with --opt: distill recipe-from-parlai -- -t blended_skill_talk -m ..."
            )
        text = recipe_yaml(translate(read_command(flags or [], opt), name))
    except ParlaiError as error:
        refuse(error)
    typer.echo(text, nl=False)


def _summary(imported: Imported) -> str:
    data = ", ".join(f"{key}: {value!r}" for key, value in imported.data.items())
    lines = [
        f"{imported.folder}: a {imported.family} model, {imported.parameters:,} parameters ({imported.dtype}), "
        f"{imported.vocabulary:,} tokens. Every tensor was compared after loading it with transformers.",
        f"A recipe with this teacher reads texts as it does with data: {{{data}}}",
    ]
    if not imported.trains_positions:
        lines.append("Its position tables were fixed; student.train_position_tables: false keeps a student's so.")
    if imported.projections_left_out:
        lines.append(f"{imported.projections_left_out} tensors of distillation projections were left out.")
    return "\n".join(lines)
