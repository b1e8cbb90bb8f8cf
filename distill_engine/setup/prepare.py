"""Everything about a run that needs no process group and no GPU: checked and loaded, or refused with all reasons.

`distill check` stops here; training goes on with the result. Nothing in it depends on the rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from distill_engine.cluster.files import digest_of
from distill_engine.data.audio.frontend import Frontend
from distill_engine.data.episodes import Split
from distill_engine.data.tokens.layout import SequenceLayout, SpecialTokens
from distill_engine.data.tokens.tokenised import TokenisedDataset, ids_without_row
from distill_engine.data.tokens.tokenize import DialogueTokenizer, load_tokenizer
from distill_engine.families.lookup import family_named, family_of
from distill_engine.families.protocol import Family
from distill_engine.families.shape import Shape
from distill_engine.models.generation_settings import Decoder, Settled, settle_student, special_tokens
from distill_engine.models.own_settings import GenerationError, OwnSettings, read_settings
from distill_engine.recipe.identity import vocabulary_digest
from distill_engine.recipe.problem import Problem, raise_if_any
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.teacher_rules import check_against_teacher, check_tokenizer, id_without_row
from distill_engine.setup.datasets import cache_folder, load_datasets, load_split
from distill_engine.setup.languages import Languages, language_problems, languages_of, row_languages, told_language
from distill_engine.setup.listening import frontend_of
from distill_engine.setup.other_teachers import OtherTeacher, other_teachers, print_of
from distill_engine.setup.teacher_folder import check_weights, read_config, teacher_folder
from distill_engine.setup.vocabulary import Vocabulary, Wanted, check_same_tokens, leave_size, trimmed_teacher
from distill_engine.student.layer_map import resolve_layer_map


@dataclass(frozen=True)
class Prepared:
    """A checked recipe with what it names, loaded.

    generation  how the student generates, and its export
    frontend    makes features of sounds, for a family that hears
    languages   of the data; `told` is what of the teacher's generation settings its target language changes
    vocabulary  what is kept of a trimmed one; teacher_folder and tokenizer are then the trimmed teacher's
    others      teachers beside the first
    """

    recipe: Recipe
    family: Family
    teacher_folder: Path | None
    teacher_config: Mapping[str, Any] | None
    special: SpecialTokens
    tokenizer: Any
    layout: SequenceLayout
    dataset_labels: tuple[str, ...]
    train_datasets: tuple[TokenisedDataset, ...]
    valid_datasets: tuple[TokenisedDataset, ...]
    valid_labels: tuple[str, ...]
    generation: Settled
    languages: Languages = field(default_factory=Languages)
    told: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    frontend: Frontend | None = None
    others: tuple[OtherTeacher, ...] = ()

    @property
    def teacher_shape(self) -> Shape | None:
        """The teacher's sizes."""
        return None if self.teacher_config is None else self.family.shape(self.teacher_config)

    @property
    def compared_shape(self) -> Shape | None:
        """Sizes of the teacher whose hidden states and attention are compared."""
        number = self.recipe.features_of
        return self.others[number - 1].shape if number else self.teacher_shape


def prepare(recipe: Recipe, source: Path | str) -> Prepared:
    """Load and check teacher configuration, tokenizer and data (memory-mapped from the token cache where it can be).

    With a trimmed vocabulary the teacher is its trimmed copy, and the tokenizer that copy's.

    Raises RecipeError for what does not fit together, DataError for bad data files, WeightsError for weight files
    that are missing or damaged, or not those of the model that config.json describes (only their headers are read).
    """
    whole = _prepare(recipe, source)
    if recipe.student.vocabulary == "all":
        return whole
    part, cache = recipe.student, cache_folder(recipe.data)
    wanted = Wanted(part.vocabulary_min_count, Path(part.vocabulary_list) if part.vocabulary_list else None)
    assert whole.teacher_folder is not None, "a rule of recipes"
    vocabulary = trimmed_teacher(
        whole.teacher_folder, whole.tokenizer, whole.train_datasets, whole.valid_datasets, wanted, cache
    )
    leave_size(cache, vocabulary_digest(recipe), vocabulary)
    teacher = recipe.teacher.model_copy(update={"path": str(vocabulary.folder), "revision": None})
    data = recipe.data.model_copy(update={"tokenizer": None})
    ready = _prepare(recipe.model_copy(update={"teacher": teacher, "data": data}), source)
    check_same_tokens(vocabulary, whole.train_datasets, ready.train_datasets)
    return replace(ready, recipe=recipe, vocabulary=vocabulary)


def _prepare(recipe: Recipe, source: Path | str) -> Prepared:
    """The same with the teacher and the tokenizer that the recipe names."""
    folder = teacher_folder(recipe)
    config = None if folder is None else read_config(folder, source)
    if folder is not None and config is not None:
        raise_if_any(source, check_against_teacher(recipe, config))
    family = family_of(config) if config is not None else family_named(str(recipe.student.family))
    tokenizer = load_tokenizer(recipe.data.tokenizer or str(folder))
    own = _own_settings(folder, source)
    own_special = _special(family, tokenizer, own, config, source)
    languages, special = _languages(recipe, family, tokenizer, own_special, source)
    told = told_language(family, own, own_special, special)
    shape = None if config is None else family.shape(config)
    window = None if shape is None else shape.window
    frontend = frontend_of(recipe, family, folder, shape, source)
    layout = replace(family.layout(special, recipe.data.history_end_token), window=window)
    others = other_teachers(recipe, config, tokenizer, source)
    for one in () if folder is None else (folder, *(other.folder for other in others)):
        check_weights(one)
    generation = _generation(recipe, _decoder(recipe, layout, family, shape, len(tokenizer)), layout, own, source)
    wrappings = languages.wrappings(family, special, recipe.data.history_end_token, window)
    datasets = load_datasets(recipe.data, encoder_of(recipe, tokenizer, layout), wrappings, frontend)
    if shape is not None:
        misfit = ids_without_row((*datasets.train, *datasets.valid), shape.read_vocab, shape.vocab)
        raise_if_any(source, [] if misfit is None else [id_without_row(*misfit)])
    return Prepared(
        recipe=recipe,
        family=family,
        teacher_folder=folder,
        teacher_config=config,
        special=special,
        tokenizer=tokenizer,
        layout=layout,
        dataset_labels=datasets.labels,
        train_datasets=datasets.train,
        valid_datasets=datasets.valid,
        valid_labels=datasets.valid_labels,
        generation=generation,
        languages=languages,
        told=told,
        frontend=frontend,
        others=others,
    )


def datasets_of(ready: Prepared, split: Split) -> dict[str, TokenisedDataset]:
    """The datasets that have a split, by name. The test split is read here and now: training has no use for it.

    Raises DataError for bad files.
    """
    if split == "train":
        return dict(zip(ready.dataset_labels, ready.train_datasets, strict=True))
    if split == "valid":
        return dict(zip(ready.valid_labels, ready.valid_datasets, strict=True))
    encoder = encoder_of(ready.recipe, ready.tokenizer, ready.layout)
    ends = ready.recipe.data.history_end_token
    wrappings = ready.languages.wrappings(ready.family, ready.special, ends, ready.layout.window)
    return load_split(ready.recipe.data, encoder, split, wrappings, ready.frontend)


def encoder_of(recipe: Recipe, tokenizer: Any, layout: SequenceLayout) -> DialogueTokenizer:
    data = recipe.data
    return DialogueTokenizer(tokenizer, layout, data.delimiter, data.context_tokens, data.label_tokens)


def fingerprints(ready: Prepared) -> dict[str, str]:
    """Short digests of what a run depends on beside its recipe; a checkpoint of other ones is not continued.

    teacher  configuration, and names and sizes of the weight files (the weights themselves would take minutes)
    data     every token of the training and validation examples, so also the tokenizer: the best value, patience and
             plateaus compare validations, which must be of the same examples
    """
    data = hashlib.sha256()
    for dataset in (*ready.train_datasets, *ready.valid_datasets):
        data.update(dataset.digest.encode())
    found = {"data": data.hexdigest()[:16]}
    if ready.teacher_folder is not None:
        found["teacher"] = print_of(ready.teacher_folder, ready.teacher_config)
    if ready.others:
        found["other_teachers"] = digest_of([print_of(one.folder, one.config) for one in ready.others])[:16]
    return found


def _special(
    family: Family,
    tokenizer: Any,
    own: OwnSettings | None,
    config: Mapping[str, Any] | None,
    source: Path | str,
) -> SpecialTokens:
    needed = ("pad_token_id", "eos_token_id", *(("bos_token_id",) if family.needs_start else ()))
    ids = {name: getattr(tokenizer, name) for name in needed}
    missing = [name for name, value in ids.items() if value is None]
    problems = [Problem("data.tokenizer", f"has no {name}", "Padding, start and end need tokens") for name in missing]
    if config is not None:
        # `<mask>` and the like may lie above the embedding table; what texts really use is checked after reading
        rows = family.shape(config).read_vocab  # a tokenizer of two vocabularies counts that of sources
        if own is not None and own.config.pad_token_id == ids["pad_token_id"]:  # some config.json say another padding
            config = {**config, "pad_token_id": ids["pad_token_id"]}
        problems += check_tokenizer(min(len(tokenizer), rows), ids, rows, config)
    raise_if_any(source, problems)
    return special_tokens(family, tokenizer, None if own is None else own.config, config)


def _languages(
    recipe: Recipe, family: Family, tokenizer: Any, special: SpecialTokens, source: Path | str
) -> tuple[Languages, SpecialTokens]:
    """The data's languages, and the special tokens with them; the tokenizer wraps texts so from here on."""
    raise_if_any(source, language_problems(recipe.data, family, tokenizer))
    languages = languages_of(recipe.data, tokenizer)
    languages.set_in(tokenizer)
    special = languages.settled(family, special)
    reason = family.unsettled(special)
    if reason:
        rule = "Students are trained on replies in one language"
        fix = "Name it as the data's `target_language`, or in the teacher's generation_config.json"
        raise_if_any(source, [Problem("teacher.path", f"is {recipe.teacher.path!r}, {reason}", rule, fix)])
    reason = languages.refused_rows(family, special)
    if reason:
        rule = f"The teacher is {recipe.teacher.path!r}, {reason}"
        raise_if_any(source, [Problem(f"data.datasets.{index}.language", f"is {column!r}", rule, "Remove it")
                              for index, column in row_languages(recipe.data).items()])  # fmt: skip
    return languages, special


def _decoder(recipe: Recipe, layout: SequenceLayout, family: Family, shape: Shape | None, entries: int) -> Decoder:
    """What the student's generation settings must fit."""
    positions = recipe.student.positions or (None if shape is None else shape.positions)
    rows = entries if shape is None else shape.vocab
    never = family.masked_id(layout.start_id)
    copied = () if shape is None else _copied(recipe, shape)
    return Decoder(family, layout.decoder_prefix, never, positions, rows, layout.end_id, copied)


def _copied(recipe: Recipe, teacher: Shape) -> tuple[int, ...]:
    """The teacher layer that each of the student's decoder layers begins as; none of random ones."""
    student, depth = recipe.student, teacher.decoder_layers
    if not student.from_teacher:
        return ()
    return resolve_layer_map(student.decoder_init_map, depth, student.decoder_layers or depth)


def _own_settings(folder: Path | None, source: Path | str) -> OwnSettings | None:
    if folder is None:
        return None
    try:
        return read_settings(folder)
    except GenerationError as error:
        raise_if_any(source, [_generation_problem(folder, error)])
        raise AssertionError from error


def _generation(
    recipe: Recipe, decoder: Decoder, layout: SequenceLayout, own: OwnSettings | None, source: Path | str
) -> Settled:
    try:
        return settle_student(own or _fresh_settings(layout), decoder, recipe.data.label_tokens)
    except GenerationError as error:
        raise_if_any(source, [_generation_problem(recipe.teacher.path, error)])
        raise AssertionError from error


def _generation_problem(folder: Path | str | None, error: Exception) -> Problem:
    return Problem("teacher.path", f"is {str(folder)!r}: {error}", "A student generates as its teacher does")


def _fresh_settings(layout: SequenceLayout) -> OwnSettings:
    config = GenerationConfig(
        pad_token_id=layout.pad_id,
        bos_token_id=layout.start_id,
        eos_token_id=layout.end_id,
        decoder_start_token_id=layout.decoder_prefix[0],
        forced_eos_token_id=layout.end_id,
    )
    return OwnSettings(config, "the family")
