"""The generation settings that lie in a model's folder, as transformers takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

GENERATION_FILE = "generation_config.json"


class GenerationError(ValueError):
    """A generation setting that cannot be used."""


@dataclass(frozen=True)
class OwnSettings:
    """The generation settings of a model folder, and the file that they are from.

    remark  why that is not generation_config.json although there is one; else empty
    """

    config: GenerationConfig
    source: str
    remark: str = ""


def read_settings(folder: Path) -> OwnSettings:
    """What transformers takes for a model of this folder. Raises GenerationError for values that it refuses."""
    try:
        return OwnSettings(_read(folder), GENERATION_FILE)
    except OSError as error:  # missing, or no JSON
        remark = f"it cannot be read ({first_line(error)})" if (folder / GENERATION_FILE).exists() else ""
    config = _read(folder, config_file_name="config.json", _from_model_config=True)
    return OwnSettings(config, "config.json", remark)


def _read(folder: Path, **options: Any) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True, **options)
    except (ValueError, TypeError, AttributeError) as error:
        name = options.get("config_file_name", GENERATION_FILE)
        raise GenerationError(
            f"{folder / name} holds generation settings that transformers refuses: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """Of what an error says, 300 characters at most; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
