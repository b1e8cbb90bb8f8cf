"""The languages that a recipe's data is in, as a tokenizer's tokens: around sources, and at the decoder's start.

The target language is one in a run: a student's generation settings, its export's too, name one. Sources may be in
several. Where `generate` can be told each row's language (Family.prompts), datasets may have target languages of their
own, and so may rows: the run's is then what replies begin with where nothing else is asked. Where the decoder reads the
language after its start token, that position predicts nothing: the language is asked for, not learnt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distill_engine.cluster.ranks import first_of
from distill_engine.data.config import DataSection
from distill_engine.data.kinds.named import kind_of
from distill_engine.data.kinds.protocol import Guess
from distill_engine.data.tokens.backends import markers
from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens, Window
from distill_engine.families.protocol import Family
from distill_engine.models.generation_settings import obey
from distill_engine.models.own_settings import OwnSettings
from distill_engine.recipe.problem import Problem, did_you_mean

# `deu_Latn`, `de_DE`, `__de__`, `<|de|>`
_CODE = re.compile(r"(?:(__)|(<\|))?(?P<code>[a-z]{2,3}(_[A-Za-z]{2,4})?)(?(1)__|)(?(2)\|>|)")
_SOURCE, _TARGET = "source_language", "target_language"


def language_codes(tokenizer: Any) -> dict[str, int]:
    """The languages that a tokenizer has a token for: code -> id, `de` for `__de__`."""
    found = {_CODE.fullmatch(token): number for token, number in markers(tokenizer).items()}
    return {match["code"]: number for match, number in found.items() if match}


@dataclass(frozen=True)
class Wrappings:
    """What stands around texts where it is not what stands around the run's.

    layouts  by the dataset's title
    prompts  what the decoder reads before a text, by the code of the language that its row names
    """

    layouts: Mapping[str, SequenceLayout] = field(default_factory=dict)
    prompts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Languages:
    """What a recipe says of languages.

    reads   dataset -> token before or after its sources, of those that say it
    writes  the token that replies begin with, or None: what the teacher's settings say
    codes   of the tokenizer, for `export`: (source where it is one, target)
    own     dataset -> token that its texts begin with, of those where that is another than `writes`
    of_rows code -> token of the languages that rows may name; none where no dataset's rows name one
    """

    reads: Mapping[str, int] = field(default_factory=dict)
    writes: int | None = None
    codes: tuple[str | None, str | None] = (None, None)
    own: Mapping[str, int] = field(default_factory=dict)
    of_rows: Mapping[str, int] = field(default_factory=dict)

    def set_in(self, tokenizer: Any) -> None:
        """Let a tokenizer wrap texts so; it is exported with the student."""
        for name, code in zip(("src_lang", "tgt_lang"), self.codes, strict=True):
            if code is not None and hasattr(tokenizer, name):
                setattr(tokenizer, name, code)

    def settled(self, family: Family, special: SpecialTokens) -> SpecialTokens:
        """The special tokens of the run."""
        if self.codes[0] is not None:
            special = replace(special, source=next(iter(self.reads.values())))
        aimed = None if self.writes is None else family.towards(special, self.writes)
        return aimed or special

    def of_dataset(self, family: Family, special: SpecialTokens, title: str) -> SpecialTokens:
        """The special tokens of a dataset."""
        special = replace(special, source=self.reads.get(title, special.source))
        aimed = family.towards(special, self.own[title]) if title in self.own else None
        return aimed or special

    def refused_rows(self, family: Family, special: SpecialTokens) -> str:
        """Why rows cannot name languages of their own; empty where they can, or none does."""
        aimed = [family.towards(special, number) or special for number in self.of_rows.values()]
        return family.unsettled(aimed[0]) if aimed else ""

    def wrappings(self, family: Family, special: SpecialTokens, ends: bool, window: Window | None) -> Wrappings:
        """Of datasets and rows whose texts are in a language that the recipe or the row names."""
        own = {title: family.layout(self.of_dataset(family, special, title), ends)
               for title in (*self.reads, *self.own)}  # fmt: skip
        rows = {code: family.towards(special, number) or special for code, number in self.of_rows.items()}
        return Wrappings(
            {title: replace(layout, window=window) for title, layout in own.items()},
            {code: family.layout(aimed, ends).decoder_prefix for code, aimed in rows.items()},
        )


def languages_of(data: DataSection, tokenizer: Any) -> Languages:
    """Of a recipe without `language_problems`. Of several target languages the first is the run's."""
    known = language_codes(tokenizer)
    named = {source.title: kind_of(source).languages(source) for source in data.datasets}
    reads = {title: read for title, (read, _) in named.items() if read is not None}
    writes = next((written for _, written in named.values() if written is not None), None)
    one = next(iter(reads.values())) if len(set(reads.values())) == 1 and len(reads) == len(named) else None
    target = None if writes is None else known[writes]
    own = {title: known[code] for title, (_, code) in named.items() if code is not None and code != writes}
    rows = known if row_languages(data) else {}
    return Languages({title: known[code] for title, code in reads.items()}, target, (one, writes), own, rows)


def row_languages(data: DataSection) -> dict[int, str]:
    """Number of the dataset -> column of its rows' own languages."""
    columns = {index: kind_of(source).language_column(source) for index, source in enumerate(data.datasets)}
    return {index: column for index, column in columns.items() if column is not None}


def language_problems(data: DataSection, family: Family, tokenizer: Any) -> Iterator[Problem]:
    """Codes that the tokenizer does not have, languages of a family that knows none, several target languages."""
    known = language_codes(tokenizer)
    speaks = family.towards(SpecialTokens(pad=0, end=0), 0) is not None
    targets: dict[str, int] = {}
    for index, source in enumerate(data.datasets):
        for key, code in zip((_SOURCE, _TARGET), kind_of(source).languages(source), strict=True):
            if code is None:
                continue
            path = f"data.datasets.{index}.{key}"
            if not speaks:
                what = f"is {code!r}, but models of the family {family.name} know no languages"
                fix = "Remove it; `prefix` puts a text before sources"
                yield Problem(path, what, "Languages are tokens around texts", fix)
            elif code not in known:
                fix = did_you_mean(code, known) or "Use one of the tokenizer's codes"
                yield Problem(path, f"is {code!r}, which the tokenizer has no token for", _codes_of(known), fix)
            if key == _TARGET:
                targets.setdefault(code, index)
    for index, column in row_languages(data).items():
        if not speaks or not known:
            what = f"is {column!r}, but this teacher's texts begin with no language"
            yield Problem(f"data.datasets.{index}.language", what, _codes_of(known), "Remove it")
    if len(targets) > 1 and not family.prompts:
        (first, where), (second, there) = list(targets.items())[:2]
        yield Problem(
            f"data.datasets.{there}.{_TARGET}", f"is {second!r}, but data.datasets.{where}.{_TARGET} is {first!r}",
            "A run has one target language: it begins every reply", "Distil a student for each",
        )  # fmt: skip


def told_language(
    family: Family, own: OwnSettings | None, before: SpecialTokens, after: SpecialTokens
) -> dict[str, Any]:
    """What begins replies in another language than a model's own settings say, by transformers' names; `own` obeys."""
    settings = {} if own is None else own.config.to_dict()
    old, new = (family.begins(special, settings) for special in (before, after))
    told = {name: value for name, value in new.items() if value not in (None, settings.get(name)) and new != old}
    if own is not None:
        obey(own.config, told)
    return told


def languages_of_columns(guess: Guess, family: Family, tokenizer: Any) -> tuple[Mapping[str, str], str | None]:
    """Options of a first recipe's entry whose columns are called as languages (`translation.en`) or hold each row's,
    and a sentence about them; or what is to be filled in. Nothing for a family or a tokenizer that knows no languages,
    or rows that name none and have no source text."""
    known, entry = language_codes(tokenizer), guess.entry
    if not known or family.towards(SpecialTokens(pad=0, end=0), 0) is None:
        return {}, None
    if guess.languages is not None:
        return _languages_of_rows(*guess.languages, known)
    if "source" not in entry:
        return {}, None
    columns = {key: str(entry.get(name, "")) for key, name in ((_SOURCE, "source"), (_TARGET, "target"))}
    found = {key: _code_of(column.rpartition(".")[2], known) for key, column in columns.items()}
    if all(found.values()):
        return found, "languages: " + ", ".join(f"{key} {code}" for key, code in found.items()) + ", as columns say"
    some = ", ".join(sorted(known)[:4])
    return {}, (
        f"languages: columns do not say which of the teacher's {len(known)} they are in: add {_SOURCE} and {_TARGET} "
        f"to the data's entry ({some}, ...)"
    )


def _languages_of_rows(column: str, said: Collection[str], known: Mapping[str, int]) -> tuple[Mapping[str, str], str]:
    unknown = sorted(set(said) - set(known))
    if not unknown:
        return {"language": column}, f"languages: {column!r} says each row's ({first_of(sorted(said), 4)})"
    strange = first_of([repr(code) for code in unknown], 3)
    return {}, (
        f"languages: {column!r} says {strange}, which the teacher's tokenizer has no token for; with its codes there "
        f"({', '.join(sorted(known)[:4])}, ...) add language: {column} to the data's entry"
    )


# two letters -> the three of those tokenizers that have them
_THREE_LETTERS = {
    "ar": "arb", "bg": "bul", "bn": "ben", "cs": "ces", "da": "dan", "de": "deu", "el": "ell", "en": "eng", "es": "spa",
    "et": "est", "fa": "pes", "fi": "fin", "fr": "fra", "he": "heb", "hi": "hin", "hr": "hrv", "hu": "hun", "id": "ind",
    "it": "ita", "ja": "jpn", "ko": "kor", "lt": "lit", "lv": "lvs", "nl": "nld", "no": "nob", "pl": "pol", "pt": "por",
    "ro": "ron", "ru": "rus", "sk": "slk", "sl": "slv", "sv": "swe", "sw": "swh", "ta": "tam", "th": "tha", "tr": "tur",
    "uk": "ukr", "ur": "urd", "vi": "vie",
}  # fmt: skip


def _code_of(column: str, known: Mapping[str, int]) -> str:
    """The tokenizer's code of a language that a column is called after; empty where none or several fit."""
    if column in known:
        return column
    names = {column, _THREE_LETTERS.get(column, column)}
    fitting = [code for code in known if code.partition("_")[0] in names]
    return fitting[0] if len(fitting) == 1 else ""


def _codes_of(known: Mapping[str, int]) -> str:
    if not known:
        return "It knows no languages; the tokenizer of a multilingual teacher has a special token for each"
    some = ", ".join(sorted(known)[:8])
    return f"It knows {len(known)} languages: {some}{', ...' if len(known) > 8 else ''}"
