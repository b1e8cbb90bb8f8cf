"""What can be chosen by name: loss terms, divergences and the like, the built-in ones and those of others.

A name stands for an object of a module that is imported only when it is asked for. There are three sources: the tables
below; Python entry points of installed packages (group `distill_engine.<seam>`, the entry's name is the name); and
modules given by `--plugin`, which call `register` when they are imported. No torch: recipes and the launcher read it.

What an object must be is the protocol of its seam: losses/terms/protocol.py, losses/divergences/protocol.py,
metrics/protocol.py, families/protocol.py, data/kinds/protocol.py, teachers/protocol.py (Source), rollouts/protocol.py,
export/protocol.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from distill_engine.recipe.problem import did_you_mean

GROUP = "distill_engine"
_TERMS, _DIVERGENCES = "distill_engine.losses.terms", "distill_engine.losses.divergences"
_FAMILIES = "distill_engine.families"
_KINDS = "distill_engine.data.kinds"
_TOKEN, _TEXT = "distill_engine.metrics.token", "distill_engine.metrics.text"

# Their order is that of logs, reductions and golden files; what comes from elsewhere follows, by name.
BUILT_IN: dict[str, dict[str, str]] = {
    "families": {
        "blenderbot": f"{_FAMILIES}.blenderbot:FAMILY",
        "blenderbot-small": f"{_FAMILIES}.blenderbot_small:FAMILY",
        "bart": f"{_FAMILIES}.bart:FAMILY",
        "mbart": f"{_FAMILIES}.mbart:FAMILY",
        "marian": f"{_FAMILIES}.marian:FAMILY",
        "pegasus": f"{_FAMILIES}.pegasus:FAMILY",
        "m2m_100": f"{_FAMILIES}.m2m_100:FAMILY",
        "t5": f"{_FAMILIES}.t5:FAMILY",
        "mt5": f"{_FAMILIES}.mt5:FAMILY",
        "umt5": f"{_FAMILIES}.umt5:FAMILY",
        "whisper": f"{_FAMILIES}.whisper:FAMILY",
    },
    "kinds": {
        "dialogue": f"{_KINDS}.dialogue:KIND",
        "speech": f"{_KINDS}.speech:KIND",  # before pairs: a path and a text are two texts as well
        "pairs": f"{_KINDS}.pairs:KIND",
    },
    "metrics": {
        "ppl": f"{_TOKEN}.ppl:PPL",
        "loss": f"{_TOKEN}.loss:LOSS",
        "token_accuracy": f"{_TOKEN}.token_accuracy:TOKEN_ACCURACY",
        "token_exact_match": f"{_TOKEN}.token_exact_match:TOKEN_EXACT_MATCH",
        "teacher_agreement": f"{_TOKEN}.teacher_agreement:TEACHER_AGREEMENT",
        "teacher_ppl": f"{_TOKEN}.ppl:TEACHER",
        "teacher_token_accuracy": f"{_TOKEN}.token_accuracy:TEACHER",
        "teacher_kl": f"{_TOKEN}.teacher_kl:TEACHER_KL",
        "f1": f"{_TEXT}.f1:METRIC",
        "rouge_1": f"{_TEXT}.rouge:ONE",
        "rouge_2": f"{_TEXT}.rouge:TWO",
        "rouge_l": f"{_TEXT}.rouge:LONGEST",
        "chrf": f"{_TEXT}.chrf:METRIC",
        "spbleu": f"{_TEXT}.spbleu:METRIC",
        "wer": f"{_TEXT}.error_rate:WORDS",
        "wer_english": f"{_TEXT}.error_rate:ENGLISH",
        "cer": f"{_TEXT}.error_rate:CHARACTERS",
        "token_error_rate": f"{_TEXT}.error_rate:TOKENS",
        "accuracy": f"{_TEXT}.accuracy:METRIC",
        "bleu": f"{_TEXT}.bleu:METRIC",
        "interdistinct-1": f"{_TEXT}.interdistinct:FIRST",
        "interdistinct-2": f"{_TEXT}.interdistinct:SECOND",
        "repetition": f"{_TEXT}.repetition:METRIC",
        "reply_words": f"{_TEXT}.length:REPLY",
        "reference_words": f"{_TEXT}.length:REFERENCE",
        "empty": f"{_TEXT}.degenerate:EMPTY",
        "unique": f"{_TEXT}.degenerate:UNIQUE",
    },
    "terms": {
        "task": f"{_TERMS}.task:TASK",
        "encoder": f"{_TERMS}.encoder:ENCODER",
        "encoder_embedding": f"{_TERMS}.embedding:ENCODER",
        "decoder_embedding": f"{_TERMS}.embedding:DECODER",
        "encoder_hidden": f"{_TERMS}.hidden:ENCODER",
        "decoder_hidden": f"{_TERMS}.hidden:DECODER",
        "encoder_self_attention": f"{_TERMS}.self_attention:ENCODER",
        "decoder_self_attention": f"{_TERMS}.self_attention:DECODER",
        "cross_attention": f"{_TERMS}.cross_attention:CROSS",
        "prediction": f"{_TERMS}.prediction:PREDICTION",
        "label_smoothing": f"{_TERMS}.label_smoothing:LABEL_SMOOTHING",
        "encoder_hidden_cosine": f"{_TERMS}.hidden_cosine:ENCODER",
        "decoder_hidden_cosine": f"{_TERMS}.hidden_cosine:DECODER",
        "encoder_self_relations": f"{_TERMS}.self_relations:ENCODER",
        "decoder_self_relations": f"{_TERMS}.self_relations:DECODER",
    },
    "divergences": {
        "forward_kl": f"{_DIVERGENCES}.forward_kl:FORWARD_KL",
        "reverse_kl": f"{_DIVERGENCES}.reverse_kl:REVERSE_KL",
        "jensen_shannon": f"{_DIVERGENCES}.jensen_shannon:JENSEN_SHANNON",
        "total_variation": f"{_DIVERGENCES}.total_variation:TOTAL_VARIATION",
        "logit_mse": f"{_DIVERGENCES}.logit_mse:LOGIT_MSE",
    },
    "exports": {
        "hf": "distill_engine.export.convert:TARGET",
        "parlai": "distill_engine.interop.parlai.run_export:TARGET",
        "onnx": "distill_engine.export.onnx:TARGET",
        "ctranslate2": "distill_engine.export.ctranslate2:TARGET",
    },
    "teachers": {"live": "distill_engine.teachers.live:LIVE", "cache": "distill_engine.teachers.cache:CACHE"},
    "rollouts": {
        "gold": "distill_engine.rollouts.gold:GOLD",
        "student": "distill_engine.rollouts.student:STUDENT",
    },
}
# Attributes that tables show beside the meaning.
_BESIDE = {"metrics": ("measures", "unit", "better"), "kinds": ("inputs", "keep")}
_PLUGGED_IN: dict[str, dict[str, str]] = {seam: {} for seam in BUILT_IN}


class RegistryError(ValueError):
    """A seam, a name or a plugin that cannot be used; the text says what to do."""


def names(seam: str) -> tuple[str, ...]:
    """All names of a seam: built-in ones in the order of their table, then the others by name.

    Raises RegistryError for an unknown seam.
    """
    return tuple(_targets(seam))


def load(seam: str, name: str) -> Any:
    """The object of this name.

    Raises RegistryError for an unknown seam or name ("did you mean"), and for a target that cannot be imported.
    """
    targets = _targets(seam)
    if name not in targets:
        raise RegistryError(unknown(seam, name))
    return _imported(seam, name, targets[name])


def unknown(seam: str, name: str) -> str:
    """What to say about a name that is in no table."""
    known = names(seam)
    parts = (f"{name!r} is none of the {seam}.", f"There are: {', '.join(known)}.", did_you_mean(name, known))
    return " ".join(filter(None, parts))


def register(seam: str, name: str, target: str) -> None:
    """Add a name, as a module given by `--plugin` does while it is imported.

    target  `module:object`
    Raises RegistryError for an unknown seam, a name that stands for something else, or another form of target.
    """
    targets = _targets(seam)
    if not name.replace("_", "").isalnum() or not name.islower():
        raise RegistryError(f"{seam}: {name!r} cannot be a name. Names are words of a-z, 0-9 and _, as metrics have.")
    if targets.get(name, target) != target:
        raise RegistryError(f"{seam}: {name!r} is {targets[name]} already. Register {target} under another name.")
    if not all(target.partition(":")):
        raise RegistryError(f"{seam}: {name!r} is to be {target!r}. A target is module:object.")
    _PLUGGED_IN[seam][name] = target


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules by name (also from the working directory) or by file (`.py`); each registers what it brings.

    Raises RegistryError where one cannot be imported.
    """
    for module in modules:
        try:
            _import_file(Path(module)) if module.endswith(".py") else _import_name(module)
        except RegistryError:
            raise
        except Exception as error:  # it runs somebody else's code
            raise RegistryError(
                f"--plugin {module} cannot be imported: {type(error).__name__}: {error}. Give a module that Python "
                "finds from here (PYTHONPATH), or the path of its .py file."
            ) from error


def plugins_first(arguments: Sequence[str]) -> list[str]:
    """A command line with every `--plugin MODULE` before the command, where the option is known; what stands behind
    `--` is another program's."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    first, rest = [], []
    words = iter(arguments[:end])
    for word in words:
        if word == "--plugin":
            first += [word, *[value for value in (next(words, None),) if value is not None]]
        elif word.startswith("--plugin="):
            first.append(word)
        else:
            rest.append(word)
    return [*first, *rest, *arguments[end:]]


def rows(seam: str) -> list[tuple[str, str]]:
    """Name and meaning of everything in a seam."""
    return [(name, str(load(seam, name).meaning)) for name in names(seam)]


def table(seam: str) -> list[tuple[str, ...]]:
    """The same with what else a table of this seam shows; the header comes first."""
    beside = _BESIDE.get(seam, ())
    shown = [(name, *(str(getattr(load(seam, name), one)) or "-" for one in beside), text) for name, text in rows(seam)]
    return [("name", *beside, "meaning"), *shown]


def markdown(seam: str) -> str:
    """`table` as the docs have it, without a last line end."""
    header, *shown = table(seam)
    cells = [header, ("---",) * len(header), *((f"`{name}`", *others) for name, *others in shown)]
    return "\n".join("|---" * len(row) + "|" if row[0] == "---" else f"| {' | '.join(row)} |" for row in cells)


def _targets(seam: str) -> dict[str, str]:
    if seam not in BUILT_IN:
        raise RegistryError(f"{seam!r} is no seam. There are: {', '.join(BUILT_IN)}. {did_you_mean(seam, BUILT_IN)}")
    others = {**dict(_installed(seam)), **_PLUGGED_IN[seam]}
    return BUILT_IN[seam] | {name: others[name] for name in sorted(others) if name not in BUILT_IN[seam]}


@cache
def _installed(seam: str) -> tuple[tuple[str, str], ...]:
    """Entry points; packages do not come and go while a process runs."""
    return tuple((entry.name, entry.value) for entry in entry_points(group=f"{GROUP}.{seam}"))


@cache
def _imported(seam: str, name: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RegistryError(
            f"{seam}: {name!r} is {target}, which cannot be imported: {error}. Correct the plugin or the entry point "
            "of the package that brings it, or uninstall that."
        ) from error


def _import_name(module: str) -> None:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    importlib.import_module(module)


def _import_file(file: Path) -> None:
    """Under the file's own name, so that targets in it are `name:object`."""
    if file.stem in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise RegistryError(f"--plugin {file}: there is no such file. Give a Python file or a module's name.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
