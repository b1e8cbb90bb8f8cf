"""ParlAI's `.opt` files: the options a model was trained with, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill_engine.interop.parlai.options.errors import ParlaiError, shown


class PickledOptError(ParlaiError):
    """An `.opt` from before ParlAI wrote JSON; only unpickling could read it."""


def read_opt(path: Path) -> dict[str, Any]:
    """The options in a file, by their names with underscores.

    Raises PickledOptError when the file is no text at all, ParlaiError when it is missing, damaged or no options.
    """
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ParlaiError(
            f"{path}: there is no such file. ParlAI writes a model's options as MODEL.opt. Give its path."
        ) from error
    except UnicodeDecodeError as error:
        raise PickledOptError(
            f"{path} is not JSON: byte {error.start} is {error.object[error.start]:#04x}, which is no UTF-8. Very old "
            "versions of ParlAI pickled their options. Save it again with a newer one, or read it with --allow-pickle."
        ) from error
    except json.JSONDecodeError as error:
        raise ParlaiError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}). An .opt file is one JSON object. "
            "The copy may be incomplete: copy it again."
        ) from error
    except OSError as error:
        raise ParlaiError(f"{path} cannot be read: {error.strerror}. Give a readable .opt file.") from error
    return checked_options(options, path)


def checked_options(options: Any, path: Path) -> dict[str, Any]:
    """The options, if they are a mapping with text keys. Raises ParlaiError otherwise."""
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise ParlaiError(
            f"{path} holds {shown(options)}. An .opt file is one JSON object of option names and values. "
            "Give the file that ParlAI wrote next to the model."
        )
    return dict(options)
