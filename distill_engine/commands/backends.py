"""`--backends` of `distill latency` and `distill report-card`: one student by several programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distill_engine.commands.evaluate import short_names
from distill_engine.commands.terminal import tell

if TYPE_CHECKING:
    import torch

    from distill_engine.evaluate.agreement import Prompts
    from distill_engine.evaluate.backend_rows import BackendRow
    from distill_engine.evaluate.latency_rows import Timing
    from distill_engine.export.backends import Running
    from distill_engine.setup.prepare import Prepared

WARM_UP = 2


def opened(
    model: str, backends: Sequence[str], folder: Path, prompts: Prompts, device: torch.device | None = None
) -> list[Running]:
    """A model in its programs, PyTorch first. Raises TargetError with all that they lack.

    model   folder, run folder or Hub name
    folder  for exports; must live as long as what is returned
    device  where PyTorch runs; None: this machine's own
    """
    from distill_engine.evaluate.agreement import said_ids
    from distill_engine.evaluate.compare import model_folder, own_device
    from distill_engine.export.backends import running
    from distill_engine.models.loading import local_copy

    student = Path(local_copy(model_folder(model)))
    return running(
        student, backends, folder, device or own_device(), lambda one: said_ids(one, prompts.contexts[:1], 8)
    )


def measured(
    model: str,
    programs: Sequence[Running],
    prompts: Prompts,
    rounds: int,
    new_tokens: int,
    advance: Callable[[int, int], None] | None = None,
) -> list[BackendRow]:
    """One row per program: the headline case in interleaved rounds, then replies to the prompts."""
    from distill_engine.evaluate.backend_rows import HEADLINE
    from distill_engine.evaluate.latency import measure

    models = {one.backend: one.model for one in programs}
    timings = measure(models, [HEADLINE], prompts.contexts, rounds, WARM_UP, new_tokens, advance)
    return rows_of(model, programs, {name: timings[name, HEADLINE] for name in models}, prompts, new_tokens)


def rows_of(
    model: str,
    programs: Sequence[Running],
    timings: Mapping[str, Sequence[Timing]],
    prompts: Prompts,
    new_tokens: int,
) -> list[BackendRow]:
    """The same of timings that there are; says on stderr which generation settings a program does not have."""
    from distill_engine.data.tokens.tokenize import load_tokenizer
    from distill_engine.evaluate.backend_rows import backend_rows
    from distill_engine.evaluate.compare import model_folder
    from distill_engine.models.loading import local_copy

    for one in programs:
        for setting in getattr(one.model, "ignored", ()):
            text = f"{one.backend} does not have {setting}, which is one of {model}'s generation settings"
            tell(text)
    tokenizer = load_tokenizer(str(local_copy(model_folder(model))))
    return backend_rows(model, programs, timings, tokenizer, prompts, new_tokens)


def judged(ready: Prepared) -> list[str]:
    """The text metrics by which this recipe's kinds of data are judged."""
    from distill_engine.data.kinds.named import kind_of

    return list(dict.fromkeys(name for source in ready.recipe.data.datasets for name in kind_of(source).metrics))


def print_backends(rows: Sequence[BackendRow], metrics: Sequence[str]) -> None:
    """One table on stdout."""
    from distill_engine.evaluate.backend_rows import backend_table

    header, cells = backend_table(rows, short_names(row.model for row in rows), metrics)
    title = f"backends: greedy, one at a time; equal replies of {rows[0].prompts}, compared with torch"
    table: Any = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number > 1 else "left", no_wrap=number < 2)
    for line in cells:
        table.add_row(*line)
    Console().print(table)
