"""`distill chat`: talk to a model, or to a student and its teacher side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from distill_engine.commands.evaluate import GenerationOption, short_names
from distill_engine.commands.terminal import refuse

if TYPE_CHECKING:
    from distill_engine.evaluate.chat import ContextRules, Conversation
    from distill_engine.recipe.schema import Recipe

_HELP = "/reset begins again, /persona TEXT sets who the model is (and begins again), /quit ends"
_STYLES = ("bold cyan", "bold magenta")


def chat(
    model: Annotated[str, typer.Argument(help="Model folder, run folder (its best/), or Hub name.")],
    beside: Annotated[
        str | None, typer.Option("--beside", help="Second model that answers the same, such as the teacher.")
    ] = None,
    persona: Annotated[
        list[str], typer.Option("--persona", help="Line about the model, before the first thing said; repeatable.")
    ] = [],  # noqa: B006  typer copies it
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Recipe whose data rules are used; default: the run folder's.")
    ] = None,
    generation: GenerationOption = [],  # noqa: B006
) -> None:
    """Chat in the terminal; each reply with the time it took. Reads lines from standard input."""
    console = Console()
    try:
        names = [model, *([beside] if beside is not None else [])]
        speakers = _speakers(names, _recipe(names, recipe), persona, generation, console)
    except (ValueError, OSError) as error:
        refuse(error)
    console.print(_HELP, style="dim", highlight=False)
    for line in _lines(console):
        if line == "/quit":
            break
        if line.startswith("/"):
            _command(line, speakers, console)
            continue
        for style, (name, speaker) in zip(_STYLES, speakers.items(), strict=False):
            spoken = speaker.answer(line)
            fact = f" ({1000 * spoken.seconds:.0f} ms, {spoken.tokens} tokens)"
            console.print(Text.assemble((name, style), (fact, "dim"), f": {spoken.text}"), soft_wrap=True)


def _command(line: str, speakers: dict[str, Conversation], console: Console) -> None:
    word, _, rest = line.partition(" ")
    if word not in ("/reset", "/persona") or (word == "/persona" and not rest.strip()):
        console.print(f"{word} is no command here: {_HELP}", style="yellow", highlight=False)
        return
    for speaker in speakers.values():
        speaker.begin_again([rest.strip()] if word == "/persona" else None)
    console.print("a new conversation", style="dim")


def _lines(console: Console) -> Iterator[str]:
    """What is said, blank lines left out, until the input ends; a prompt only for people."""
    prompted = sys.stdin.isatty()
    while True:
        try:
            line = console.input("[bold green]you[/]: ") if prompted else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if not prompted and not line:
            return
        if line.strip():
            yield line.strip()


def _recipe(names: list[str], given: Path | None) -> Recipe | None:
    """The recipe that says how contexts are made, if there is one."""
    from distill_engine.recipe.load import load_recipe

    own = [Path(name) / "recipe.yaml" for name in names]
    file = given or next((file for file in own if file.is_file()), None)
    return None if file is None else load_recipe(file)


def _speakers(
    names: list[str], recipe: Recipe | None, persona: list[str], generation: list[str], console: Console
) -> dict[str, Conversation]:
    """A conversation per model, by short name. Models with their own tokenizers may talk side by side."""
    from distill_engine.data.tokens.tokenize import load_tokenizer
    from distill_engine.evaluate.chat import Conversation
    from distill_engine.evaluate.compare import model_folder, own_device
    from distill_engine.evaluate.generate import notes_on, own_settings, parse_settings
    from distill_engine.evaluate.measure import load_model

    changed = parse_settings(generation)
    short = short_names(names)
    made = {}
    for name in dict.fromkeys(names):
        model = load_model(model_folder(name), own_device())
        limit = 128 if recipe is None else recipe.data.label_tokens
        settings = own_settings(model, limit, changed)
        for note in notes_on(model, limit, changed):
            console.print(f"{short[name]}: {note}", style="dim", highlight=False, soft_wrap=True, markup=False)
        rules = _rules(model, recipe)
        made[short[name]] = Conversation(model, load_tokenizer(model_folder(name)), rules, settings, persona)
        if recipe is None:
            text = f"{short[name]}: no recipe given; contexts are made as is usual for {model.config.model_type}"
            console.print(text, style="dim", highlight=False, soft_wrap=True)
    return made


def _rules(model: Any, recipe: Recipe | None) -> ContextRules:
    from distill_engine.evaluate.chat import ContextRules, usual_rules

    if recipe is None:
        return usual_rules(model)
    data = recipe.data
    return ContextRules(data.delimiter, data.context_tokens, data.history_end_token)
