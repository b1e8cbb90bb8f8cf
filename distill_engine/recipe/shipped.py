"""Files that travel beside the code: recipes, DeepSpeed configurations, job scripts; in a repository and in a wheel.

The folders `recipes/`, `ds_configs/` and `slurm/` stand at the top of the repository. A wheel has no such place, so it
carries them inside the package (setup.py). Whoever needs one of these files finds it from HOME.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from distill_engine.recipe.problem import did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (_PACKAGE / "shipped").is_dir()  # from a wheel: there is no repository around the package
HOME = _PACKAGE / "shipped" if INSTALLED else _PACKAGE.parent
FOLDERS = ("ds_configs", "recipes", "slurm")

DEFAULT_RECIPE = HOME / "recipes" / "demo.yaml"
DEFAULT_DS_CONFIG = HOME / "ds_configs" / "zero2.json"
DEFAULT_TEACHER_DS_CONFIG = HOME / "ds_configs" / "teacher_zero3.json"


def recipes() -> dict[str, str]:
    """Name -> first line of its comment, which says what the recipe is for."""
    files = sorted((HOME / "recipes").glob("*.yaml"))
    return {file.stem: file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for file in files}


def copy_recipe(name: str, folder: Path) -> list[Path]:
    """Copy a recipe, and what it names beside itself (a teacher, a tokenizer), into a folder; returns what was made.

    Raises ValueError for an unknown name, and where something of that name is there already: nothing is overwritten.
    """
    known = recipes()
    if name not in known:
        raise ValueError(f"There is no recipe {name!r}. There are: {', '.join(known)}. {did_you_mean(name, known)}")
    source = HOME / "recipes" / f"{name}.yaml"
    named = dict.fromkeys(_beside(yaml.safe_load(source.read_text(encoding="utf-8")), source.parent))
    return _copy([source, *named], source.parent, folder)


def copy_templates(folder: Path) -> list[Path]:
    """Copy all shipped folders into another one, for people who change job scripts. Raises as `copy_recipe`."""
    return _copy([HOME / name for name in FOLDERS], HOME, folder)


def _beside(value: Any, folder: Path) -> Iterator[Path]:
    """Relative paths among a recipe's values that exist in its folder."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _beside(one, folder)
    elif isinstance(value, str) and "/" in value and not value.startswith(("/", ".")) and (folder / value).exists():
        yield folder / value


def _copy(sources: list[Path], home: Path, folder: Path) -> list[Path]:
    targets = {source: folder / source.relative_to(home) for source in sources}
    there = [str(target) for target in targets.values() if target.exists()]
    if there:
        raise ValueError(f"{', '.join(there)} exists already. Nothing is overwritten: choose another folder.")
    for source, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return list(targets.values())
