"""Generated answers as data of the examples' own kind: a JSON-lines file per dataset, and the recipe's entry for it.

The source and the history are the dataset's own texts, whole; the answer alone is the model's. Files are complete or
absent, and their lines follow the order of the dataset's examples. What an example needs beside its line, such as a
sound that a row of the dataset holds, lies in a folder called as the file: of the examples that were kept, no others.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_engine.cluster.files import replacing
from distill_engine.data.errors import DataError
from distill_engine.data.kinds.named import kind_of
from distill_engine.data.kinds.protocol import Kind, Reading, Source, Writer
from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.evaluate.generate import Reply
from distill_engine.pseudo_labels.filters import Filters
from distill_engine.setup.prepare import Prepared, encoder_of


@dataclass(frozen=True)
class Written:
    """What became of one dataset.

    entry     of data.datasets, which reads the file; None where no example was kept
    left_out  filter -> examples
    """

    title: str
    file: Path
    entry: Mapping[str, object] | None
    examples: int
    left_out: Mapping[str, int]

    @property
    def kept(self) -> int:
        """Examples in the file."""
        return self.examples - sum(self.left_out.values())


def check_kinds(ready: Prepared) -> None:
    """Raises ValueError for a dataset whose kind cannot write examples, before anything is generated."""
    for source in ready.recipe.data.datasets:
        kind_of(source).writer(source, Path())


def write(ready: Prepared, answers: Sequence[Sequence[Reply]], filters: Filters, folder: Path) -> list[Written]:
    """A file in `folder` for each dataset of the recipe; `answers` as `generate` gives them.

    Raises DataError where the data is no longer what was answered, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = ready.recipe.data.datasets
    return [
        _write(ready, source, tokens, said, filters, folder / f"{number}-{_plain(source.title)}.jsonl")
        for number, (source, tokens, said) in enumerate(zip(sources, ready.train_datasets, answers, strict=True), 1)
    ]


def _write(
    ready: Prepared, source: Source, tokens: TokenisedDataset, said: Sequence[Reply], filters: Filters, file: Path
) -> Written:
    kind, left_out, count = kind_of(source), Counter[str](), 0
    too_long, beside = _too_long(ready, kind), file.with_suffix("")
    writer = kind.writer(source, beside)
    with replacing(file, sync=True) as lines:
        for count, (entries, gold, note) in enumerate(_examples(ready, source, tokens), 1):
            if count > len(said):
                break
            text = said[count - 1].text
            if reason := filters.reason(text, gold, ready.tokenizer) or too_long(text):
                left_out[reason] += 1
            else:
                lines.write(json.dumps(writer.row(entries, text, note), ensure_ascii=False) + "\n")
        if count != len(said):
            raise DataError(f"{source.title} has changed while it was answered. Start again when its files rest.")
    _remove_others(beside, writer)
    kept = count - left_out.total()
    # a generated example is an episode of its own: where weights count episodes, this makes it weigh what gold's do
    turns = len(tokens) / tokens.episodes if ready.recipe.data.weights_mean == "episodes" else 1.0
    entry = _entry(source, file, source.weight * turns) if kept else None
    return Written(source.title, file, entry, count, dict(left_out.most_common()))


def _remove_others(folder: Path, writer: Writer) -> None:
    """What examples needed that other filters kept; nothing that anybody else has put there."""
    for file in folder.glob(writer.names) if writer.names else ():
        if file.name not in writer.files:
            file.unlink()
    if not writer.files:
        with suppress(OSError):  # not there, or not empty
            folder.rmdir()


def _entry(source: Source, file: Path, weight: float) -> dict[str, Any]:
    own = dict(kind_of(source).entry(source))
    return {**own, "label": f"{source.title}_pseudo", "weight": float(f"{weight:.4g}"), "train": str(file.resolve())}


def _too_long(ready: Prepared, kind: Kind) -> Callable[[str], str]:
    """Why a text that is learnt whole, as what is said in a sound, cannot be; empty where it can."""
    encoder, limit = encoder_of(ready.recipe, ready.tokenizer, ready.layout), ready.recipe.data.label_tokens

    def reason(text: str) -> str:
        whole = kind.inputs == "audio" and len(encoder.encode([f" {text}"], written=True)[0]) + 1 > limit
        return "longer than data.label_tokens" if whole else ""

    return reason


_Asked = tuple[Sequence[str], str, str]


def _examples(ready: Prepared, source: Source, tokens: TokenisedDataset) -> Iterator[_Asked]:
    """The dataset's examples in its order: the history with what is answered, the gold answer, and the turn's note."""
    asked = _all_examples(ready, source, tokens)
    if tokens.notes is None:
        yield from asked
        return
    kept = (tokens.notes[index] for index in range(len(tokens)))
    wanted = next(kept, None)
    for one in asked:
        if one[2] == wanted:  # others were left out when the data was tokenised
            yield one
            wanted = next(kept, None)


def _all_examples(ready: Prepared, source: Source, tokens: TokenisedDataset) -> Iterator[_Asked]:
    data, encoder = ready.recipe.data, encoder_of(ready.recipe, ready.tokenizer, ready.layout)
    seconds = None if ready.frontend is None else ready.frontend.seconds
    reading = Reading(data.root, data.max_bad_rows, seconds, ready.languages.of_rows.keys())
    for episode in kind_of(source).read(source, "train", reading):
        entries: list[str] = []
        found: list[_Asked] = []
        for turn in episode.turns:
            entries.append(turn.text)
            if turn.learnt:
                found.append((tuple(entries), turn.label, turn.note))
            entries.append(turn.label)
        # examples without a word before the answer, the first of an episode, are left out of datasets
        yield from found[len(found) - len(encoder.examples(episode)) :] if tokens.skipped else found


def _plain(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", title).strip("._-") or "dataset"
