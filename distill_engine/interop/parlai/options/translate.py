"""ParlAI's options -> a recipe, and a word about each option that has no equivalent.

Where ParlAI's default decides what is learnt, it is written down; where it only decides what is shown, the recipe's
own default stays.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_engine.interop.parlai.options.command_line import Options
from distill_engine.interop.parlai.options.errors import ParlaiError, shown
from distill_engine.interop.parlai.options.flags import BOOKKEEPING, BY_OPTION
from distill_engine.interop.parlai.options.presets import zoo_model
from distill_engine.interop.parlai.options.sections import BatchOf, ScheduleOf, StudentOf, TrainingKind, ValidationOf
from distill_engine.interop.parlai.options.tasks import task_sources

# Class of ParlAI's four distillation agents -> (family, narrow).
_DISTILLERS = {
    "DistillTransformerAgent": ("blenderbot", False),
    "DistillNarrowTransformerAgent": ("blenderbot", True),
    "DistillBartAgent": ("bart", False),
    "DistillNarrowBartAgent": ("bart", True),
}
_PLAIN = {
    "transformer/generator": "blenderbot",
    "parlai.agents.transformer.transformer:TransformerGeneratorAgent": "blenderbot",
    "bart": "bart",
    "parlai.agents.bart.bart:BartAgent": "bart",
}
_BART_START = "zoo:bart/bart_large/model"
_COMMON_TERMS = {"task": "task", "encoder": "encoder", "hidden": "hidden", "prediction": "pred"}
_NARROW_TERMS = {"embedding": "embedding", "self_attention": "self_attn", "cross_attention": "enc_dec_attn"}


@dataclass(frozen=True)
class Note:
    """One flag that is not the same here: `flag` as it was spelled with its value, and why."""

    flag: str
    text: str


@dataclass(frozen=True)
class Translation:
    """A recipe's sections as plain data, and the notes to it."""

    recipe: dict[str, Any]
    notes: tuple[Note, ...]


def translate(options: Options, name: str | None = None) -> Translation:
    """The equivalent recipe. `name` names it; None: after --model-file.

    Raises ParlaiError when there is no equivalent at all: another kind of model, no task, no teacher.
    """
    notes: list[Note] = []

    def say(flag: str, text: str) -> None:
        notes.append(Note(flag, text))

    kind = _training_kind(options)
    student = StudentOf(options, kind, say)
    recipe: dict[str, Any] = {
        "name": name or _name(options),
        **({} if options["seed"] is None else {"seed": options["seed"]}),
        "teacher": {"path": _converted(kind, say)},
        "student": student.section(),
        "losses": _losses(options, kind),
        "data": _data(options, kind, student.positions, say),
        "batch": BatchOf(options, say).section(),
        "optimizer": ScheduleOf(options, say).optimizer(),
        "schedule": ScheduleOf(options, say).section(),
        "validation": ValidationOf(options, say).section(),
        "stop": ValidationOf(options, say).stop(),
        **_logging(options),
    }
    if options["save_every_n_secs"] > 0:
        recipe["checkpoint"] = {"every_seconds": options["save_every_n_secs"]}
    return Translation(recipe, (*_guesses(options), *_without_equivalent(options), *dict.fromkeys(notes)))


def _training_kind(options: Options) -> TrainingKind:
    model = options["model"]
    if model is None:
        raise ParlaiError("The command names no --model (-m). It decides what is trained. Add the flag.")
    agent = str(model).rpartition(":")[2]
    if agent in _DISTILLERS:
        family, narrow = _DISTILLERS[agent]
        if not options["teacher_model"]:
            raise ParlaiError(
                f"--model is {agent}, but there is no --teacher-model. It is who is imitated. Add the flag."
            )
        copied = not narrow and options["copy_teacher_weights"]
        return TrainingKind(family, options["teacher_model"], copied, distils=True, narrow=narrow)
    if model not in _PLAIN:
        raise ParlaiError(
            f"--model is {shown(model)}. Recipes train what these train: {', '.join((*_DISTILLERS, *_PLAIN))}. "
            "There is no equivalent of another model."
        )
    started = options["init_model"]
    if str(started).lower() == "none":  # ParlAI's bart starts from BART large, whatever it is told
        started = _BART_START if _PLAIN[model] == "bart" else None
    return TrainingKind(_PLAIN[model], started, copied=started is not None, distils=False, narrow=False)


def _name(options: Options) -> str:
    """After --model-file: the folder of a file called `model`, else the file."""
    path = Path(str(options["model_file"] or "model"))
    stem = path.parent.name if path.name.startswith("model") else path.name
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in stem).lstrip("._-")
    return cleaned or "from_parlai"


def _converted(kind: TrainingKind, say: Callable[[str, str], None]) -> str | None:
    """The Hugging Face name of the model that the command names, or the folder it has to be converted to."""
    model = kind.source
    if model is None:
        return None
    released = zoo_model(model)
    if released is not None:
        return released.hub
    folder = str(Path(model).parent / "hf")
    flag = "--teacher-model" if kind.distils else "--init-model"
    say(f"{flag} {model}", f"is converted once: {shlex.join(['distill', 'import-parlai', model, folder])}")
    return folder


def _losses(options: Options, kind: TrainingKind) -> dict[str, Any]:
    terms = {**_COMMON_TERMS, **(_NARROW_TERMS if kind.narrow else {})}
    every = (*_COMMON_TERMS, *_NARROW_TERMS)
    weights = {ours: options[f"{terms[ours]}_loss_coeff"] if ours in terms else 0.0 for ours in every}
    if not kind.distils:
        weights = {term: float(term == "task") for term in every}
    return {"definition": "parlai", "weights": weights}


def _data(options: Options, kind: TrainingKind, positions: int, say: Callable[[str, str], None]) -> dict[str, Any]:
    longest = {"context_tokens": positions, "label_tokens": positions - (kind.family == "bart")}
    limits = {}
    for key, option in (("context_tokens", "text_truncate"), ("label_tokens", "label_truncate")):
        asked = options[option] or options["truncate"]
        limits[key] = asked if asked > 0 else longest[key]
        if asked <= 0:
            say(f"--{option.replace('_', '-')} {asked}", f"nothing is longer than the position tables: {limits[key]}")
    stochastic = options["multitask_weights"] == "stochastic"
    section: dict[str, Any] = {"datasets": task_sources(options, say)}
    section["weights_mean"] = "passes" if stochastic else "episodes"
    if options["datapath"]:
        section["root"] = options["datapath"]
    if kind.source is None:
        section["tokenizer"] = options["dict_file"] or "TOKENIZER"
        say("--dict-file", "data.tokenizer has to name a Hugging Face tokenizer with the same ids")
    return section | {
        **limits,
        "delimiter": options["delimiter"],
        "history_end_token": options["history_add_global_end_token"] is not None,
    }


def _logging(options: Options) -> dict[str, Any]:
    section: dict[str, Any] = {}
    if options.stated("log_every_n_steps") and options["log_every_n_steps"] > 0:
        section["every_steps"] = options["log_every_n_steps"]
    wandb = {key: options[f"wandb_{key}"] for key in ("project", "entity") if options[f"wandb_{key}"]}
    if "wandb_log" in options.given and not options["wandb_log"]:
        wandb["mode"] = "disabled"
    return {"logging": section | ({"wandb": wandb} if wandb else {})} if section or wandb else {}


def _guesses(options: Options) -> list[Note]:
    if options.guessed is None:
        return []
    known = ", ".join(f"{option} {value!r}" for option, value in options.inherited.items() if option != "model")
    return [
        Note(
            f"--init-opt {options.guessed}",
            f"is not at hand; what is known of this released model was used: {known}. The file may hold more, such as "
            "update_freq and warmup_updates: name its path to have all of it",
        )
    ]


def _without_equivalent(options: Options) -> list[Note]:
    """A note for each flag that was given and has none, and for inherited values that are not ParlAI's default."""
    notes = [
        Note(f"--{BY_OPTION[option].name} {_spelled(value)}", BY_OPTION[option].why)
        for option, value in options.given.items()
        if BY_OPTION[option].why and not (option == "init_opt" and options.guessed)
    ]
    changed = {
        option: value
        for option, value in options.inherited.items()
        if option in BY_OPTION and option not in options.given and value not in (None, BY_OPTION[option].default)
    }
    notes += [
        Note(f"{BY_OPTION[option].name} {_spelled(value)} (inherited)", BY_OPTION[option].why)
        for option, value in changed.items()
        if not BY_OPTION[option].here and options.guessed is None and option not in BOOKKEEPING
    ]
    foreign = [option for option in options.inherited if option not in BY_OPTION and option not in BOOKKEEPING]
    if foreign:
        notes.append(Note(", ".join(sorted(foreign)), "are inherited, but no options that are known here; not used"))
    return notes


def _spelled(value: Any) -> str:
    return str(value) if isinstance(value, bool | int | float | str) and str(value).strip() else repr(value)
