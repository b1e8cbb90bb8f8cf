"""`distill export`: a finished or running run's student, as a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from distill_engine.checkpoint.checkpoints import Checkpoints
from distill_engine.checkpoint.manifest import CheckpointError
from distill_engine.checkpoint.retention import Retention
from distill_engine.cluster.files import sync_folder, sync_tree
from distill_engine.cluster.ranks import Alone
from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.export.hf import not_finite, probe_of, verify_folder, write_student
from distill_engine.families.lookup import family_of
from distill_engine.models.classes import auto_class, config_of, untie
from distill_engine.models.own_settings import read_settings

_STUDENT_PREFIX = "adapter.model."


def _is_apart(name: str, state: Mapping[str, torch.Tensor], model: PreTrainedModel) -> bool:
    """Whether a parameter that a new model ties was trained apart."""
    source = model.all_tied_weights_keys.get(name)
    return source is not None and not torch.equal(state[name], state[source])


def export_run(
    run: Path, target: Path, which: Literal["best", "last"], say: Callable[[str], None] = lambda _text: None
) -> int:
    """Write the best validated student, or the newest checkpoint's, into a new folder; returns its step.

    `say` is told what is odd about it. The newest checkpoint's needs no export to have succeeded before.

    Raises ValueError if the run has no such student or the target exists, ExportError if what was written does
    not load as the same model.
    """
    if target.exists():
        raise ValueError(f"{target} exists already. Give a new folder, or remove it first.")
    best = run / "best"
    if which == "best":
        if not best.is_dir():
            raise ValueError(
                f"{run} has no exported student (no `best` folder): is it a run folder, and has the run validated yet? "
                "--which last writes the newest checkpoint's."
            )
        step = _copy_best(best, target)
    else:
        step = _rebuild_last(run, _described(run, best), target, say)
    sync_tree(target)
    sync_folder(target.parent)
    return step


def _described(run: Path, best: Path) -> Path:
    """Where the run says what its student is: written at its start, and again with each export."""
    for folder in (run / "student", best):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"{run} has neither a `student` nor a `best` folder with a config.json: is it a run folder?")


def _copy_best(best: Path, target: Path) -> int:
    version = best.resolve()  # a run that goes on may publish another one meanwhile
    shutil.copytree(version, target)
    verify_folder(target)
    return int(version.name.removeprefix("step-").partition(".")[0])


def _rebuild_last(run: Path, files: Path, target: Path, say: Callable[[str], None]) -> int:
    """Weights from the checkpoint; architecture, generation settings and tokenizer are those in `files`."""
    newest = Checkpoints(run / "checkpoints", Alone(), identity={}, keep=Retention(1)).latest_complete()
    if newest is None:
        raise CheckpointError(f"{run / 'checkpoints'} holds no complete checkpoint.")
    shards = sorted((newest.folder / "student").rglob("mp_rank_00_model_states.pt"))
    if not shards:
        raise CheckpointError(f"{newest.folder} holds no student weights (mp_rank_00_model_states.pt).")
    stored = torch.load(shards[0], map_location="cpu", weights_only=True, mmap=True)["module"]
    own = [name for name in stored if name.startswith(_STUDENT_PREFIX)]  # the rest are projections
    state = {name.removeprefix(_STUDENT_PREFIX): stored[name] for name in own}
    dtype = next(iter(state.values())).dtype
    config = config_of(files)
    model = auto_class(config).from_config(config, dtype=dtype)
    apart = [name for name in family_of(config).separable if _is_apart(name, state, model)]
    untie(model, apart)
    model.load_state_dict(state)
    model.generation_config = read_settings(files).config
    bad = not_finite(model)
    if bad:
        say(f"weights that are not finite, written as they are: {', '.join(bad)}")
    card = f"# {run.name}\n\nThe student at step {newest.step}, exported from a checkpoint; not validated there.\n"
    write_student(model, load_tokenizer(str(files)), target, card, probe_of(model), finite=False)
    return newest.step
