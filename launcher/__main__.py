"""`python -m launcher`: plan, submit, watch and end runs on a cluster. Needs neither torch nor a GPU."""

from __future__ import annotations

import sys

from distill_engine.registry import plugins_first
from launcher.app import app
from launcher.container import container_words
from launcher.job_commands import after, preflight_node, preflight_report, table
from launcher.plan_command import plan
from launcher.user_commands import cancel, status, submit, templates

for command in (
    after, preflight_node, preflight_report, table, container_words, plan, submit, status, cancel, templates,
):  # fmt: skip
    app.command()(command)

if __name__ == "__main__":
    app(plugins_first(sys.argv[1:]), prog_name="launcher")
