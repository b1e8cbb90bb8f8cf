"""`python -m launcher`: plan, submit, watch and end runs on a cluster. Needs neither torch nor a GPU."""

from __future__ import annotations

import sys

from distill_engine.registry import plugins_first
from launcher import job_commands, plan_command, user_commands
from launcher.app import app

job_commands.register(app)
plan_command.register(app)
user_commands.register(app)

if __name__ == "__main__":
    app(plugins_first(sys.argv[1:]), prog_name="launcher")
