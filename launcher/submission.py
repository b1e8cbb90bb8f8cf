"""A run -> one sbatch command: a list of arguments and an environment, never a line that a shell reads."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distill_engine.recipe.shipped import HOME, INSTALLED

SCRIPT = HOME / "slurm" / "distill_bb3b.sh"
JOB_FILE = "job"
CONTAINER_VARIABLES = ("CONTAINER", "CONTAINER_RUNTIME", "CONTAINER_MOUNTS", "CONTAINER_PYTHON")


@dataclass(frozen=True)
class Submission:
    """What sbatch is given.

    arguments    flags, the script, and the options of run.py
    environment  only what this program adds to the caller's own
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    def full_environment(self) -> dict[str, str]:
        """The caller's environment with the additions, without the marks of a start that the caller is in."""
        marks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        given = {name: value for name, value in os.environ.items() if name not in marks} | dict(self.environment)
        if exported := given.get("SBATCH_EXPORT"):
            given["SBATCH_EXPORT"] = _exporting(exported, self.environment)
        return given

    def shown(self) -> str:
        """The same as a line that can be pasted into a shell, names quoted."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " \\\n  ".join([*settings, shlex.join(["sbatch", *self.arguments])])


def plan_submission(
    *,
    recipe: Path,
    name: str,
    run_dir: Path,
    ds_config: Path | None,
    flags: Mapping[str, str | int | None],
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    extra_flags: tuple[str, ...],
    resize: bool = False,
) -> Submission:
    """`flags` are sbatch's long options without dashes; None leaves the script's own value."""
    given = [f"--{flag}={value}" for flag, value in flags.items() if value is not None]
    if flags.get("gpus-per-node") is not None and "ntasks-per-node" not in flags:
        given.append(f"--ntasks-per-node={flags['gpus-per-node'] or 1}")
    options = [word for override in overrides for word in ("--set", override)]
    options += [word for plugin in plugins for word in ("--plugin", _from_anywhere(plugin))]
    environment = {
        "DISTILL_HOME": str(HOME),
        "RECIPE": str(recipe.resolve()),
        "RUN_DIR": str(run_dir.absolute()),
    }
    if INSTALLED and not os.environ.get("PYTHON"):  # there is no .venv beside the job scripts
        environment["PYTHON"] = sys.executable
    environment |= {name: os.environ[name] for name in CONTAINER_VARIABLES if os.environ.get(name)}
    if resize:
        environment["RESIZE"] = "1"
    if ds_config is not None:
        environment["DS_CONFIG"] = str(ds_config.resolve())
    extra = [
        f"--export={_exporting(flag.removeprefix('--export='), environment)}" if flag.startswith("--export=") else flag
        for flag in extra_flags
    ]
    return Submission((f"--job-name={name}", *given, *extra, str(SCRIPT), *options), environment)


def _from_anywhere(plugin: str) -> str:
    """A plugin's file as the job finds it; a module's name is looked up there as it is here."""
    return str(Path(plugin).resolve()) if plugin.endswith(".py") else plugin


def _exporting(exported: str, names: Iterable[str]) -> str:
    """What sbatch is told to export, and these too: without them the job would distil something else, elsewhere."""
    if exported.split(",")[0] == "ALL":
        return exported
    return ",".join([*names] if exported in ("NONE", "NIL") else [exported, *names])


def remember_job(run_dir: Path, job: str) -> None:
    """Leave the job's id in the run folder, for status and cancel."""
    file = run_dir / "logs" / JOB_FILE
    before = os.umask(_job_umask())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{job}\n", encoding="ascii")
    finally:
        os.umask(before)


def _job_umask() -> int:
    """What the job script sets before it makes the run folder: DISTILL_UMASK, by default nobody else may look."""
    try:
        return int(os.environ.get("DISTILL_UMASK", ""), 8)
    except ValueError:  # also where it is written as the shell's u=rwx: private until the job has begun
        return 0o077
