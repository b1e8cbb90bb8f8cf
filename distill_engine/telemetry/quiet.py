"""Keeps libraries from talking over the run: known noise is dropped, everything else is heard once.

And keeps what moves on a screen out of logs: mpirun gives its ranks a terminal even where nobody looks.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Mapping

# Read when the libraries are imported; a user's own setting wins.
_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",  # key mismatches on loading are checked by the engine itself
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # also switches off transformers' bars for reading and writing weights
    "TOKENIZERS_PARALLELISM": "false",  # else every forked data worker warns about it
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # c10d retries connections with a warning each
}
_LOGGERS = ("DeepSpeed", "transformers", "huggingface_hub", "torch.distributed", "torch.utils.cpp_extension")

# Each was seen in a run in which nothing was wrong.
_KNOWN_WARNINGS = (
    r"`?torch\.distributed\.\w+`? is deprecated",  # DeepSpeed 0.19 on torch 2.13
    r".*using the device under current context",  # NCCL barrier; every rank has set its device
    r"The pynvml package is deprecated",
    r"Can't initialize NVML",  # machines without a GPU
)
_KNOWN_LOG_MESSAGES = re.compile(
    "Setting accelerator to CPU|Unable to find hostfile"
    "|A module has unknown inputs or outputs type"  # the teacher's features: nothing runs backward through them
)

_RANK_MARKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
_BATCH_MARKS = {"ENVIRONMENT": "BATCH", "PBS_ENVIRONMENT": "PBS_BATCH"}


class _NoiseFilter(logging.Filter):
    """Survives libraries that set their logger's level while being imported, as DeepSpeed does."""

    def __init__(self, lowest: int) -> None:
        super().__init__()
        self._lowest = lowest

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        return record.levelno >= self._lowest and not _KNOWN_LOG_MESSAGES.search(record.getMessage())


def is_watched(environment: Mapping[str, str]) -> bool:
    """Whether a person may look at this process's terminal: it is no rank of a launcher and no part of a batch job."""
    a_task = environment.get("SLURM_STEP_ID", "").isdecimal() and "SLURM_PROCID" in environment
    of_a_shell = "SLURM_PTY_PORT" in environment or environment.get("SLURM_STEP_ID") == "4294967290"
    launched = any(name in environment for name in _RANK_MARKS) or (a_task and not of_a_shell)
    in_batch = any(environment.get(name) == value for name, value in _BATCH_MARKS.items())
    lsf = "LSB_JOBID" in environment and "LSB_INTERACTIVE" not in environment
    return not (launched or in_batch or lsf)


def quiet_libraries(rank: int) -> None:
    """Rank 0 hears warnings that are not known noise; other ranks hear errors only.

    To be called before torch, transformers and deepspeed are imported (some settings are read then); calling
    it again is harmless. Errors and exceptions are never touched.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not is_watched(os.environ):
        os.environ["TERM"] = "dumb"  # every display looks there: no panel, no bar, no colour
    lowest = logging.WARNING if rank == 0 else logging.ERROR
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for old in [held for held in logger.filters if isinstance(held, _NoiseFilter)]:
            logger.removeFilter(old)
        logger.addFilter(_NoiseFilter(lowest))
    if rank != 0:
        warnings.simplefilter("ignore")
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
