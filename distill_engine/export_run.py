"""`distill export`: a finished or running run's student, as a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from distill_engine.data.tokenize import load_tokenizer
from distill_engine.export import probe_of, verify_folder, write_student
from distill_engine.generation_settings import read_settings
from distill_engine.train.checkpoint import Checkpoints
from distill_engine.train.manifest import CheckpointError

_STUDENT_PREFIX = "adapter.model."


class _Alone:
    """A process group of one, for reading checkpoints outside a run."""

    rank = 0
    world_size = 1

    def gather(self, value: object) -> list[object]:
        """Every rank's value."""
        return [value]


def export_run(run: Path, target: Path, which: Literal["best", "last"]) -> int:
    """Write the best validated student, or the newest checkpoint's, into a new folder; returns its step.

    Raises ValueError if the run has no such student or the target exists, ExportError if what was written does
    not load as the same model.
    """
    if target.exists():
        raise ValueError(f"{target} exists already. Give a new folder, or remove it first.")
    best = run / "best"
    if not best.is_dir():
        raise ValueError(
            f"{run} has no exported student (no `best` folder): is it a run folder, and has the run validated yet?"
        )
    return _copy_best(best, target) if which == "best" else _rebuild_last(run, best, target)


def _copy_best(best: Path, target: Path) -> int:
    version = best.resolve()  # a run that goes on may publish another one meanwhile
    shutil.copytree(version, target)
    verify_folder(target)
    return int(version.name.removeprefix("step-").partition(".")[0])


def _rebuild_last(run: Path, best: Path, target: Path) -> int:
    """Weights from the checkpoint; architecture, generation settings and tokenizer are those of the best export."""
    newest = Checkpoints(run / "checkpoints", _Alone(), identity={}, keep_last=1).latest_complete()
    if newest is None:
        raise CheckpointError(f"{run / 'checkpoints'} holds no complete checkpoint.")
    files = sorted((newest.folder / "student").rglob("mp_rank_00_model_states.pt"))
    if not files:
        raise CheckpointError(f"{newest.folder} holds no student weights (mp_rank_00_model_states.pt).")
    stored = torch.load(files[0], map_location="cpu", weights_only=True, mmap=True)["module"]
    own = [name for name in stored if name.startswith(_STUDENT_PREFIX)]  # the rest are projections
    state = {name.removeprefix(_STUDENT_PREFIX): stored[name] for name in own}
    dtype = next(iter(state.values())).dtype
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(best, trust_remote_code=False), dtype=dtype)
    model.load_state_dict(state)
    model.generation_config = read_settings(best).config
    card = f"# {run.name}\n\nThe student at step {newest.step}, exported from a checkpoint; not validated there.\n"
    write_student(model, load_tokenizer(str(best)), target, card, probe_of(model))
    return newest.step
