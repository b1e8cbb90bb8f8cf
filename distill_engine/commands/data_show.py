"""`distill data show`: what a model will read, and how much of each dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill_engine.cluster.exit_codes import BAD_INPUT
from distill_engine.commands.terminal import SetOption, refuse, tell
from distill_engine.data.kinds.named import kind_of
from distill_engine.recipe.shipped import DEFAULT_RECIPE

if TYPE_CHECKING:
    from distill_engine.data.tokens.summary import DatasetSummary, Lengths
    from distill_engine.data.tokens.tokenised import TokenisedDataset
    from distill_engine.setup.prepare import Prepared

_OUT = Console()
_BAR_WIDTH = 40
_MANY_MARKERS = 20
Words = tuple[str, str]  # what people call an input and an answer


def show(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(help="Of the recipe, or others by name; none: all of the recipe.", metavar="[DATASET]..."),
    ] = None,
    recipe: Annotated[
        Path, typer.Option("--recipe", help="Recipe: its datasets, tokenizer, delimiter, limits.")
    ] = DEFAULT_RECIPE,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    root: Annotated[Path | None, typer.Option("--root", help="Folder of the downloaded datasets (data.root).")] = None,
    split: Annotated[Literal["train", "valid"], typer.Option(help="Which split.")] = "train",
    examples: Annotated[int, typer.Option(min=0, help="Examples shown of each dataset, spread over it.")] = 3,
) -> None:
    """Look at data as a model reads it: examples with token counts, lengths, what is cut, shares of the mixture."""
    try:
        ready, wanted = _prepared(recipe, overrides, root, datasets or [])
    except ValueError as error:
        refuse(error)
    held = dict(zip(ready.dataset_labels, ready.train_datasets, strict=True))
    if split == "valid":
        held = dict(zip(ready.valid_labels, ready.valid_datasets, strict=True))
    chosen = {label: dataset for label, dataset in held.items() if not wanted or label in wanted}
    if not chosen:
        tell(f"No dataset has a {split} split: {', '.join(wanted or ready.dataset_labels)}.")
        raise typer.Exit(BAD_INPUT)
    from distill_engine.data.tokens.summary import summarise

    words = {source.title: kind_of(source).words for source in ready.recipe.data.datasets}
    for label, dataset in chosen.items():
        _print_examples(label, dataset, words[label], ready.tokenizer, examples)
    _print_markers(chosen, ready.tokenizer)
    summaries = {label: summarise(dataset) for label, dataset in chosen.items()}
    for label, summary in summaries.items():
        _print_histogram(label, words[label], summary)
    _print_tables(summaries, words, _shares(ready) if split == "train" else {}, split)
    for label, dataset in chosen.items():
        for line in dataset.left_out:
            _OUT.print(Text(f"{label}: {line}"), soft_wrap=True)


def _prepared(
    recipe: Path, overrides: Sequence[str], root: Path | None, wanted: Sequence[str]
) -> tuple[Prepared, list[str]]:
    """The recipe with its data, and the names to show; names that it lacks become its only datasets."""
    from distill_engine.recipe.load import load_recipe
    from distill_engine.recipe.rules import read_recipe

    changes = [*overrides, *([f"data.root={json.dumps(str(root))}"] if root is not None else [])]
    known = {dataset.title for dataset in load_recipe(recipe, changes).data.datasets}
    if not set(wanted) <= known:
        changes.append(f"data.datasets={json.dumps([{'name': name} for name in dict.fromkeys(wanted)])}")
    sound = read_recipe(recipe, changes)
    from distill_engine.setup.prepare import prepare  # after the recipe's own problems: this import takes seconds

    return prepare(sound, recipe), list(wanted)


def _shares(ready: Prepared) -> dict[str, float]:
    """Each dataset's share of the training examples, by the recipe's weights."""
    from distill_engine.data.order.mixture import example_weights

    data, datasets = ready.recipe.data, ready.train_datasets
    weights = example_weights(
        [dataset.weight for dataset in data.datasets],
        [len(dataset) for dataset in datasets],
        [dataset.episodes for dataset in datasets],
        data.weights_mean,
        data.temperature,
    )
    return {label: weight / sum(weights) for label, weight in zip(ready.dataset_labels, weights, strict=True)}


def _print_examples(label: str, dataset: TokenisedDataset, words: Words, tokenizer: Any, count: int) -> None:
    from distill_engine.data.tokens.summary import uncut_lengths

    contexts, labels = uncut_lengths(dataset)
    shown = sorted({index * len(dataset) // max(count, 1) for index in range(min(count, len(dataset)))})
    for index in shown:
        example = dataset.example(index)
        _OUT.rule(Text(f"{label}, example {index + 1:,} of {len(dataset):,}"), align="left", characters="-")
        label_ids = example.label_ids.tolist()
        texts = [(words[0], example.context_ids.tolist(), contexts[index]), (words[1], label_ids, labels[index])]
        if example.clip is not None:
            _print_sound(words[0], dataset, index)
            texts = [(f"read before the {words[1]}", list(example.prompt), len(example.prompt)), *texts[1:]]
        for name, ids, whole in texts:
            cut = f", {whole - len(ids)} cut" if whole > len(ids) else ""
            text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            _OUT.print(Text(f"{name} ({len(ids)} tokens{cut})", style="bold"))
            _OUT.print(Text(text), soft_wrap=True)


def _print_sound(name: str, dataset: TokenisedDataset, index: int) -> None:
    """Where a sound is, how long and how loud, and what a model reads of it."""
    from distill_engine.data.audio.clips import SpeechDataset

    assert isinstance(dataset, SpeechDataset)
    place, sound, window = dataset.place(index), dataset.sound(index), dataset.layout.window
    assert window is not None
    facts = f"{place.seconds:.2f} s at {place.rate:,} Hz, mean level {sound.level:.1f} dB"
    read = f"read as {window.frames:,} frames of {window.channels} features, {dataset.frontend.seconds:g} s"
    _OUT.print(Text(f"{name} ({facts}; {read})", style="bold"))
    _OUT.print(Text(f"{place.at} ({place.where})" if isinstance(place.at, str) else place.where), soft_wrap=True)


def _print_markers(datasets: dict[str, TokenisedDataset], tokenizer: Any) -> None:
    """The special tokens that texts may hold, and how often those of each dataset do."""
    from distill_engine.data.tokens.backends import markers

    known = markers(tokenizer)
    for name, number in known.items():
        found = {label: int((dataset.tokens == number).sum()) for label, dataset in datasets.items()}
        if len(known) > _MANY_MARKERS and not any(found.values()):  # a token for each moment of a recording
            continue
        counts = ", ".join(f"{label} {count:,}" for label, count in found.items())
        _OUT.print(Text(f"special token {name} (id {number}), kept whole, times in texts: {counts}"), soft_wrap=True)


def _print_histogram(label: str, words: Words, summary: DatasetSummary) -> None:
    for name, lengths in zip(words, (summary.contexts, summary.labels), strict=True):
        unit = f"tenths of seconds of {name}" if lengths is summary.contexts and summary.heard else f"{name} tokens"
        table = Table.grid(padding=(0, 1))
        tallest = max(share for _, share in lengths.histogram)
        begins = 1
        for end, share in lengths.histogram:
            bar = "█" * round(_BAR_WIDTH * share / tallest)
            where = f"{begins}-{end}" if end is not None else f"above {lengths.limit}: cut"
            table.add_row(Text(where, justify="right"), Text(f"{share:6.1%}"), Text(bar))
            begins = begins if end is None else end + 1
        _OUT.print(Text(f"\n{label}: {unit}", style="bold"))
        _OUT.print(table)


def _print_tables(
    summaries: dict[str, DatasetSummary], words: dict[str, Words], shares: dict[str, float], split: str
) -> None:
    sizes = Table("dataset", title=f"\n{split} split", title_justify="left")
    for column in ("examples", "episodes", "turns each", "share"):
        sizes.add_column(column, justify="right")
    lengths = Table("dataset", "text", title="\ntokens before anything is cut", title_justify="left")
    for column in ("mean", "median", "95 %", "longest", "cut"):
        lengths.add_column(column, justify="right")
    for label, one in summaries.items():
        share = f"{shares[label]:.1%}" if label in shares else "-"
        turns = f"{one.examples / one.episodes:.2f}"
        sizes.add_row(Text(label), f"{one.examples:,}", f"{one.episodes:,}", turns, share)
        first = f"{words[label][0]}, 0.1 s" if one.heard else words[label][0]
        lengths.add_row(Text(label), first, *_length_cells(one.contexts))
        lengths.add_row("", words[label][1], *_length_cells(one.labels))
    _OUT.print(sizes)
    _OUT.print(lengths)


def _length_cells(lengths: Lengths) -> tuple[str, ...]:
    whole = (lengths.median, lengths.most, lengths.longest)
    return f"{lengths.mean:.1f}", *(f"{value:,}" for value in whole), f"{lengths.cut:.1%}"
