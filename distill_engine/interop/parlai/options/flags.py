"""All flags that `parlai train_model` may be given here, by name and by spelling."""

from __future__ import annotations

from typing import Any

from distill_engine.interop.parlai.options.flag import Flag
from distill_engine.interop.parlai.options.model_flags import ARCHITECTURE, MAIN, TASKS, TEXT
from distill_engine.interop.parlai.options.training_flags import DISTILLATION, GENERATION, LOGGERS, LOOP, OPTIMIZER

FLAGS: tuple[Flag, ...] = (
    *MAIN,
    *DISTILLATION,
    *LOOP,
    *OPTIMIZER,
    *ARCHITECTURE,
    *TEXT,
    *TASKS,
    *GENERATION,
    *LOGGERS,
)
BY_OPTION: dict[str, Flag] = {flag.option: flag for flag in FLAGS}
BY_SPELLING: dict[str, Flag] = {spelling: flag for flag in FLAGS for spelling in (f"--{flag.name}", *flag.short)}

# In every saved .opt, but decided by ParlAI itself: they say nothing about training.
BOOKKEEPING = (
    "override",
    "batchindex",
    "parlai_home",
    "starttime",
    "dict_loaded",
    "interactive_task",
    "max_lr_steps",
    "bpe_dropout",
    "image_size",
    "image_cropsize",
    "numthreads",
    "rank",
)


# ParlAI leaves these out of saved files.
_NOT_SAVED = ("download_path", "datapath", "verbose", "interactive_mode", "load_from_checkpoint")


def default_options() -> dict[str, Any]:
    """What a saved `.opt` of a generator holds when no flag was given: no task's options, no launcher's."""
    saved = (*MAIN, *LOOP, *OPTIMIZER, *ARCHITECTURE, *TEXT, *GENERATION, *LOGGERS)
    launched = ("distributed_world_size", "ddp_backend", "port", "data_parallel")
    return {flag.option: flag.default for flag in saved if flag.option not in (*_NOT_SAVED, *launched)}
