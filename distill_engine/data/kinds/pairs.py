"""A source text and its target: summaries, translations, anything that one text is to be made of another.

Rows come from JSON lines, a JSON list, CSV, TSV, Parquet or Arrow files, from folders in Hugging Face's form, or from a
dataset of the Hub by name; two of their columns are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from distill_engine.data.kinds.files import HubSource, file_problems, origin_problems
from distill_engine.data.kinds.protocol import Guess, Kind, Reading, Source, Writer
from distill_engine.recipe.problem import Problem
from distill_engine.recipe.section import PositiveInt

if TYPE_CHECKING:
    from distill_engine.data.episodes import Episode, Split
    from distill_engine.data.formats.tables import Table

FORMS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")


class PairsSource(HubSource):
    """One source of pairs."""

    kind: Literal["pairs"]
    name: str = Field("pairs", description="Name in metrics.")
    source: str = Field("source", description="Column of what is read; `translation.en` looks into a column.")
    target: str = Field("target", description="Column of what is to be written.")
    prefix: str = Field("", description="Text before every source, such as `summarize: `.")
    source_language: str | None = Field(
        None, description="Language of sources, by the tokenizer's code (`eng_Latn`, `en_XX`); null: the tokenizer's."
    )
    target_language: str | None = Field(
        None, description="Language of targets, one in a run; null: the one that the teacher's settings force."
    )
    max_source_characters: PositiveInt | None = Field(None, description="Leave out rows with a longer source.")
    max_target_characters: PositiveInt | None = Field(None, description="Leave out rows with a longer target.")
    min_characters: PositiveInt | None = Field(None, description="Leave out rows with a shorter source or target.")
    max_ratio: float | None = Field(
        None, gt=1, description="Leave out rows where one text has more than N times the characters of the other."
    )


class Pairs(Kind):
    """One example a row; sources keep their first tokens."""

    name, meaning, keep = "pairs", "a source text and its target: summaries, translations", "first"
    metrics = ("rouge_l", "chrf")
    words = ("source", "target")
    Options = PairsSource

    def guess(self, data: Mapping[str, str]) -> Guess | None:
        """See Kind: two columns with known names, or the only two with texts."""
        from distill_engine.data.errors import DataError

        place = Path(data["train"]).expanduser()
        files: Mapping[str, str] = data if place.exists() else {"dataset": data["train"]}
        if place.is_file() and place.suffix not in FORMS:
            return None
        table = opened_table(PairsSource.model_validate({"kind": self.name, **files}), "train")
        rows = [row for _, row in islice(table.rows, _GUESS_ROWS) if isinstance(row, Mapping)]
        columns = _text_columns(rows)
        known = next((pair for pair in _KNOWN if set(pair) <= set(columns)), None)
        if known is None and len(columns) != 2:
            raise DataError(
                f"{table.title} has {len(columns)} columns with texts ({', '.join(columns) or 'none'}), and their "
                "names do not say which is the source and which the target. Write the entry by hand (docs/data.md)."
            )
        source, target = known or tuple(columns)
        reason = "which are called so" if known else "the only two with texts, in their order"
        why = f"{table.title} is read as pairs: source {source!r} and target {target!r}, {reason}"
        judged = ("chrf",) if source.startswith("translation.") else ()
        return Guess({"kind": self.name, **files, "source": source, "target": target}, why, judged)

    def writer(self, source: Source, folder: Path) -> Writer:
        """See Kind: the prefix is not part of a source."""
        prefix = _own(source).prefix
        return Writer(lambda entries, answer, _: {"source": entries[-1].removeprefix(prefix), "target": answer})

    def entry(self, source: Source) -> Mapping[str, object]:
        """See Kind."""
        kept = _own(source).model_dump(include={"prefix", "source_language", "target_language"})
        return {"kind": self.name, **{key: value for key, value in kept.items() if value}}

    def problems(self, source: Source, root: str | None) -> Iterator[Problem]:
        """See Kind."""
        own = _own(source)
        yield from origin_problems(own, "Pairs come", "Pairs are read")
        if own.source == own.target:
            yield Problem("target", f"is {own.target!r}, and so is source", "Nothing is learnt from copying a column")
        yield from file_problems(own, may_be_folder=True)
        for split in own.named_files:
            place = Path(str(own.file(split)))  # type: ignore[arg-type]
            if place.is_file() and place.suffix not in FORMS:
                yield Problem(split, f"is {own.file(split)!r}", f"Files of pairs end with {', '.join(FORMS)}",  # type: ignore[arg-type]
                              "Rename it, or write it in one of these forms")  # fmt: skip

    def has(self, source: Source, split: Split) -> bool:
        """See Kind: of a dataset by name, the splits that it has."""
        return _own(source).has(split)

    def languages(self, source: Source) -> tuple[str | None, str | None]:
        """See Kind."""
        own = _own(source)
        return own.source_language, own.target_language

    def facts(self, source: Source, split: Split) -> Mapping[str, object]:
        """See Kind: languages stand around texts, not in them."""
        return {key: value for key, value in super().facts(source, split).items() if not key.endswith("_language")}

    def files(self, source: Source, split: Split, root: str | None) -> list[Path]:
        """See Kind."""
        from distill_engine.data.formats.hf_datasets import opened, split_files
        from distill_engine.data.formats.tables import hub_files

        own = _own(source)
        if own.dataset is not None:
            return hub_files(own.dataset, own.config, own.revision, split)
        file = own.file(split)
        assert file is not None, "asked for a split that the source has"
        if Path(file).expanduser().is_dir():
            opened(file, split)
        return split_files(file, split)

    def read(self, source: Source, split: Split, reading: Reading) -> Iterator[Episode]:
        """See Kind. Rows that the filters leave out do not count among the first N examples."""
        from distill_engine.data.episodes import Episode, Turn
        from distill_engine.data.errors import DataError

        own, count = _own(source), 0
        table = opened_table(own, split)
        for key, column in (("source", own.source), ("target", own.target)):
            if column.partition(".")[0] not in table.columns:  # of a column that is an object
                table.require(column, key, own.title)
        for where, row in table.rows:
            if own.limit(split) is not None and count >= own.limit(split):  # type: ignore[operator]
                return
            try:
                if isinstance(row, DataError):
                    raise row
                texts = _text(row, own.source, where), _text(row, own.target, where)
                if not texts[1].strip():
                    raise DataError(f"{where}: the target `{own.target}` is empty. Nothing is learnt from it. {_FIX}")
            except DataError as error:
                reading.leave_out(error)
                continue
            if reason := _filtered(own, *texts):
                reading.dropped[reason] += 1
                continue
            count += 1
            yield Episode((Turn(own.prefix + texts[0], texts[1]),))
        if not count:
            raise DataError(
                f"{table.title} holds no example for the {split} split of {own.title!r}"
                f"{': ' + '; '.join(reading.lines) if reading.lines else ''}. Check the file and the filters."
            )


_GUESS_ROWS = 50
# Names of columns in published datasets, source before target.
_KNOWN = (
    ("source", "target"), ("article", "highlights"), ("document", "summary"), ("dialogue", "summary"),
    ("article", "summary"), ("text", "summary"), ("report", "summary"), ("src", "tgt"), ("source_text", "target_text"),
    ("input", "output"), ("input", "target"), ("inputs", "targets"), ("question", "answer"), ("prompt", "completion"),
)  # fmt: skip


def _text_columns(rows: list[Mapping[str, Any]]) -> list[str]:
    """Columns that hold a text in every row, those inside a column that is an object with dots."""
    found: list[str] = []
    for name, value in (rows[0] if rows else {}).items():
        names = [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) else [name]
        found += [one for one in names if all(isinstance(column_of(row, one), str) for row in rows)]
    return [one for one in found if one.rpartition(".")[2] not in ("id", "idx", "uid")]


_FIX = "Correct the row, remove it, or let data.max_bad_rows leave some out."


def opened_table(source: PairsSource, split: Split) -> Table:
    """Columns and rows of a split. Raises DataError where it is not there."""
    from distill_engine.data.formats.tables import hub_table, open_table

    if source.dataset is not None:
        return hub_table(source.dataset, source.config, source.revision, split)
    return open_table(str(source.file(split)), split)


def column_of(row: Mapping[str, Any], name: str) -> object:
    """A column's value; dots lead into columns that are objects themselves. None where there is none."""
    if name in row:
        return row[name]
    first, _, rest = name.partition(".")
    inner = row.get(first)
    return column_of(inner, rest) if rest and isinstance(inner, Mapping) else None


def _text(row: object, column: str, where: str) -> str:
    from distill_engine.data.errors import DataError, shown
    from distill_engine.data.formats.records import checked_text

    if not isinstance(row, Mapping):
        raise DataError(f"{where}: not an object but {shown(row)}. A row has columns. {_FIX}")
    value = column_of(row, column)
    if value is None:
        raise DataError(f"{where}: no column {column!r}; it has {', '.join(map(str, row))}. {_FIX}")
    return checked_text(value, where, column, _FIX)


def _filtered(source: PairsSource, text: str, target: str) -> str:
    """Why the source's own filters leave a row out; empty where they do not."""
    lengths = len(text), len(target)
    if source.max_source_characters is not None and lengths[0] > source.max_source_characters:
        return "max_source_characters"
    if source.max_target_characters is not None and lengths[1] > source.max_target_characters:
        return "max_target_characters"
    if source.min_characters is not None and min(lengths) < source.min_characters:
        return "min_characters"
    if source.max_ratio is not None and max(lengths) > source.max_ratio * min(lengths):
        return "max_ratio"
    return ""


def _own(source: Source) -> PairsSource:
    assert isinstance(source, PairsSource), type(source)
    return source


KIND = Pairs()
