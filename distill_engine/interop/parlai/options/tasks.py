"""ParlAI's --task -> the recipe's list of data sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill_engine.interop.parlai.options.command_line import Options
from distill_engine.interop.parlai.options.errors import ParlaiError, shown
from distill_engine.interop.parlai.options.flags import BY_OPTION

Say = Callable[[str, str], None]

_SAME = ("blended_skill_talk", "wizard_of_wikipedia", "convai2", "convai2:normalized", "empathetic_dialogues")
_TOPIC_SPLIT = "topic_split"
_OTHER_SPELLINGS = {
    "wizard_of_wikipedia:WizardDialogKnowledgeTeacher": "wizard_of_wikipedia",
    "convai2:NormalizedTeacher": "convai2:normalized",
    "convai2:SelfOriginal": "convai2",
    "convai2:self_original": "convai2",
    "convai2:SelfOriginalTeacher": "convai2",
}
# ParlAI's readers of files -> ours, the option that names the file, and how its split files end.
_FILES = {
    "fromfile": ("parlai_text", "fromfile", ".txt"),
    "fromfile:parlaiformat": ("parlai_text", "fromfile", ".txt"),
    "fromfile:fbformat": ("fbdialog", "fromfile", ""),
    "jsonfile": ("conversations", "jsonfile", ".jsonl"),
}
_LABEL_TURNS = {"secondspeaker": "second_speaker", "firstspeaker": "first_speaker", "both": "both"}


def task_sources(options: Options, say: Say) -> list[dict[str, Any]]:
    """One entry for each task, weights included. Raises ParlaiError without a task.

    `say(flag, text)` hears about what has no equivalent.
    """
    named = str(options["task"] or "")
    tasks = [task for task in named.split(",") if task]
    if not tasks:
        raise ParlaiError("The command names no --task (-t). A recipe needs data to train on. Add the flag.")
    sources = [_source(task, options, say) for task in tasks]
    _add_weights(sources, options["multitask_weights"], say)
    limit = options["validation_max_exs"] // len(tasks)
    if limit > 0:
        for source in sources:
            source["valid_examples"] = limit
        say("--validation-max-exs", f"ParlAI divides it by tasks and processes; here {limit} examples of each task")
    return sources


def _source(task: str, options: Options, say: Say) -> dict[str, Any]:
    parts = task.split(":")
    name = ":".join(part for part in parts if "=" not in part)
    own = dict(part.split("=", 1) for part in parts if "=" in part)
    unread = [key for key in own if key not in ("label_turns", *_file_options())]
    for key in unread:
        flag = BY_OPTION.get(key.replace("-", "_"))
        say(f"--task {task}", f"{key}: {flag.why if flag and flag.why else 'there is no such option of a task'}")
    if name in _FILES:
        return _file_source(name, own, options)
    topic_split = name.endswith(f":{_TOPIC_SPLIT}")
    name = name.removesuffix(f":{_TOPIC_SPLIT}")
    name = _OTHER_SPELLINGS.get(name, name)
    if name in _SAME:
        return {"name": name, **({"topic_split": True} if topic_split else {})}
    return _unknown_source(task, say)


def _file_options() -> list[str]:
    kinds = ("datapath", "datatype_extension")
    return [f"{reader}_{kind}" for reader in ("fromfile", "jsonfile") for kind in kinds]


def _file_source(name: str, own: dict[str, str], options: Options) -> dict[str, Any]:
    reader, prefix, ending = _FILES[name]
    path = own.get(f"{prefix}_datapath", options[f"{prefix}_datapath"])
    if not path:
        raise ParlaiError(f"--task names {name}, but no --{prefix}-datapath. It says which file is read. Add the flag.")
    extended = f"{prefix}_datatype_extension"
    by_split = BY_OPTION[extended].value(own[extended]) if extended in own else options[extended]
    files = {split: f"{path}_{split}{ending}" if by_split else path for split in ("train", "valid")}
    source = {"name": reader, "label": Path(str(path)).stem or reader, **files}
    if reader == "conversations":
        turns = own.get("label_turns", options["label_turns"])
        if turns not in _LABEL_TURNS:
            raise ParlaiError(f"--label-turns is {shown(turns)}; it is one of {', '.join(_LABEL_TURNS)}. Correct it.")
        source["label_turns"] = _LABEL_TURNS[turns]
    return source


def _unknown_source(task: str, say: Say) -> dict[str, Any]:
    """A task that only ParlAI can read becomes a file that ParlAI has to write once."""
    stem = task.replace(":", "_").replace("/", "_").replace("=", "_")
    say(
        f"--task {task}",
        "has no reader here; write it with `parlai convert_data_to_parlai_format` for train and valid, and name the "
        "files in data.datasets",
    )
    return {"name": "parlai_text", "label": stem, "train": f"{stem}_train.txt", "valid": f"{stem}_valid.txt"}


def _add_weights(sources: list[dict[str, Any]], weights: Any, say: Say) -> None:
    if weights == "stochastic":  # handled by weights_mean: every episode of every task is equally likely
        return
    padded = [*weights, *([1.0] * len(sources))][: len(sources)]
    if len(weights) > len(sources):
        say("--multitask-weights", f"has {len(weights)} weights for {len(sources)} tasks; the last ones are not used")
    for source, weight in zip(sources, padded, strict=True):
        source["weight"] = weight
