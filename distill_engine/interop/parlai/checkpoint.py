"""ParlAI's model files: reading the tensors without running what else a pickle may hold.

A model file is a pickle, and a pickle is a program. By default only tensors and plain values are let through
(torch's restricted unpickler) and, beside them, ParlAI's dictionary of options, which becomes a plain one. Old files
that hold other classes need `allow_pickle`, and whoever sets it trusts the file.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from distill_engine.interop.parlai.options.errors import ParlaiError, shown
from distill_engine.interop.parlai.options.opt_file import PickledOptError, checked_options, read_opt

logger = logging.getLogger(__name__)

# Where ParlAI's class of options has lived over the years.
_OPT_NAMES = ("parlai.core.opt.Opt", "parlai.utils.misc.Opt", "parlai.core.utils.Opt")

_READ_ERRORS = (
    pickle.UnpicklingError,
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    AttributeError,
    ImportError,
    TypeError,
)


class PlainOptions(dict[str, Any]):
    """Stands for ParlAI's Opt: a dict pickled with its history, which is dropped."""

    def __setstate__(self, state: Any) -> None:
        """(history, deep copies, values), or the values alone in old files."""
        values = state[-1] if isinstance(state, tuple) else state
        if isinstance(values, dict):
            self.update(values)


class _Missing:
    """Stands for a class whose library is not installed; it takes any state and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


class _TolerantUnpickler(pickle.Unpickler):
    """Ordinary unpickling, so it runs what the file says; only libraries that are not installed become empty shells."""

    def find_class(self, module: str, name: str) -> Any:
        """The named class or function, or a shell."""
        if f"{module}.{name}" in _OPT_NAMES:
            return PlainOptions
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return _Missing


def _load_pickle(file: Any, **options: Any) -> Any:
    return _TolerantUnpickler(file, **options).load()


# What torch.load wants of a `pickle_module`.
_TOLERANT = SimpleNamespace(Unpickler=_TolerantUnpickler, load=_load_pickle, __name__="tolerant_pickle")


def load_state(path: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The model's tensors by ParlAI's names, on the CPU, mapped from disk where the format allows.

    Raises ParlaiError: no such file, damaged, no model in it, or objects in it that `allow_pickle` would run.
    """
    if not path.is_file():
        raise ParlaiError(
            f"{path}: there is no such file. A ParlAI model is a file (with .opt and .dict beside it) as "
            "--model-file names it. Give that path."
        )
    states = _unpickled(path, allow_pickle)
    model = states.get("model") if isinstance(states, dict) else None
    if not isinstance(model, dict) or not model:
        held = sorted(map(str, states)) if isinstance(states, dict) else type(states).__name__
        raise ParlaiError(
            f"{path} holds {shown(held)}, but no weights. ParlAI stores them under the key 'model'. "
            "Give the file that ParlAI's --model-file names."
        )
    strange = [name for name, value in model.items() if not isinstance(value, Tensor)]
    if strange:
        raise ParlaiError(
            f"{path}: {strange[0]!r} under 'model' is {type(model[strange[0]]).__name__}, no tensor. "
            "A state dict holds tensors only. Save the model again with ParlAI."
        )
    return dict(model)


def _unpickled(path: Path, allow_pickle: bool) -> Any:
    if allow_pickle:
        return _trusting(path)
    allowed: list[Any] = [(PlainOptions, name) for name in _OPT_NAMES]
    try:
        with torch.serialization.safe_globals([*allowed, argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if _is_refusal(error):
            raise ParlaiError(_refusal(path, error)) from error
        raise _damaged(path, error) from error
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error


def _trusting(path: Path) -> Any:
    logger.warning(
        "%s is unpickled without restrictions, as --allow-pickle asks: if somebody hid code in it, it runs now, with "
        "your rights.",
        path,
    )
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_TOLERANT)
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error


def _is_refusal(error: pickle.UnpicklingError) -> bool:
    return any(word in str(error) for word in ("Unsupported global", "Unsupported class", "not allowed", "Trying to"))


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "nsupported" in line or "Trying to" in line]
    return (
        f"{path} holds more than tensors and plain values: {shown(lines[0] if lines else str(error))}. Unpickling that "
        "would run code from the file, so it was not done. If you trust whoever made the file, use --allow-pickle "
        "(its code then runs with your rights); else have it saved again with ParlAI's `vacuum`."
    )


def _damaged(path: Path, error: Exception) -> ParlaiError:
    reason = str(error).strip().splitlines()
    return ParlaiError(
        f"{path} cannot be read as a ParlAI model ({type(error).__name__}: {shown(reason[0] if reason else '')}). "
        "It should be a file that torch.save wrote. The copy may be incomplete: copy it again."
    )


def load_options(path: Path, allow_pickle: bool = False) -> dict[str, Any]:
    """The options of a model: JSON, or with `allow_pickle` also the pickles of very old versions.

    Raises ParlaiError.
    """
    try:
        return read_opt(path)
    except PickledOptError:
        if not allow_pickle:
            raise
    logger.warning("%s is unpickled without restrictions, as --allow-pickle asks.", path)
    try:
        with path.open("rb") as file:
            return checked_options(_load_pickle(file), path)
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error
