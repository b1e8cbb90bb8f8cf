"""`distill wandb-sync`: gives W&B what it lacks of a run, from the run's own records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill_engine.cluster.exit_codes import FAILED
from distill_engine.commands.terminal import refuse, say

if TYPE_CHECKING:
    from distill_engine.reports.history import RunHistory

UPLOAD_SECONDS = 600.0


def wandb_sync(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    offline: Annotated[bool, typer.Option("--offline", help="Into a log on disk, for `wandb sync`.")] = False,
) -> None:
    """Give W&B the records of a run that it lacks; without an account or network they are kept on disk for later."""
    from distill_engine.reports.history import RunHistoryError, read_run
    from distill_engine.telemetry.wandb_sink import StoredRunId, WandbSink

    try:
        history = read_run(run)
        if history.running:
            raise RunHistoryError(f"{run} is being trained, which gives W&B what it lacks. Wait for its end.")
        if history.recipe is None:
            raise RunHistoryError(f"{run}/recipe.yaml is missing or of another version: it names the W&B project.")
    except (ValueError, OSError) as error:
        refuse(error)
    options = history.recipe.logging.wandb.model_copy(update={"mode": "offline" if offline else "auto"})
    StoredRunId(run).restore(options.mode)
    sink = WandbSink(
        run,
        history.name,
        options,
        _config(run, history),
        say,
        history=lambda: history.records,
        finish_timeout_seconds=UPLOAD_SECONDS,
    )
    if not sink.works:
        if sink.run_id is None:
            say("W&B is switched off here (WANDB_MODE=disabled): unset that variable.")
        raise typer.Exit(FAILED)
    sink.close("finished")
    if not sink.caught_up:
        say(f"W&B lacks no record of {run}")


def _config(run: Path, history: RunHistory) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if history.recipe is not None:
        config["recipe"] = history.recipe.model_dump(mode="json")
    file = run / "ds_config.json"
    if file.is_file():
        config["ds_config"] = json.loads(file.read_text(encoding="utf-8"))
    return config
