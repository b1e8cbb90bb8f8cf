"""`distill dashboard push`: the W&B workspace of the loss terms, as code."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from distill_engine.commands.terminal import refuse, say

dashboard_app = typer.Typer(help="W&B workspaces as code.", no_args_is_help=True)
dashboard_app.callback()(lambda: None)  # a group stays a group with a single command


@dashboard_app.command()
def push(
    project: Annotated[str, typer.Option("--project", help="W&B project, as in logging.wandb.project.")] = "distill",
    entity: Annotated[str | None, typer.Option("--entity", help="Team or user; default: the key's own.")] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the view.")] = "distillation",
    view: Annotated[str | None, typer.Option("--view", help="Address of a saved view that is to be replaced.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; no network, no key.")] = False,
) -> None:
    """Make a W&B workspace with a chart for every metric of this program."""
    from distill_engine.telemetry.dashboards import plan, workspace, workspace_json
    from distill_engine.telemetry.dashboards import push as push_workspace

    try:
        if dry_run:
            made = workspace(plan(), entity or "your-entity", project, name)
            sys.stdout.write(json.dumps(workspace_json(made), indent=2) + "\n")
            return
        url = push_workspace(plan(), entity, project, name, view)
    except (ValueError, OSError) as error:
        refuse(error)
    say(f"the workspace is at {url}")
