"""`distill chat` in a real terminal: the prompt, replies of two models, and the ways to leave."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEACHER = ROOT / "recipes" / "demo" / "teacher"
SPEAKER = """
import sys, typer
from distill_engine.commands.chat import chat
app = typer.Typer(pretty_exceptions_enable=False)
app.callback()(lambda: None)
app.command()(chat)
app(sys.argv[1:])
"""
PERSONA = "you are hugo, a cheerful gardener of 46. you live above a shop with a black rabbit called moss."


def test_a_person_talks_and_leaves(terminal, tmp_path):
    (tmp_path / "student").symlink_to(TEACHER)
    own = {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SPEAKER, "chat", str(TEACHER), "--beside", str(tmp_path / "student")]
    screen = terminal(
        [*command, "--recipe", str(ROOT / "recipes" / "demo.yaml"), "--persona", PERSONA], {**os.environ, **own}
    )
    screen.until(r"/quit ends[\s\S]*you: ")
    screen.type("what is your name?")
    screen.until(r"teacher \(\d+ ms, \d+ tokens\): .*hugo[\s\S]*student \(\d+ ms, \d+ tokens\): .*hugo[\s\S]*you: $")
    screen.type("/dance")
    screen.until(r"/dance is no command here")
    screen.type("/reset")
    screen.until(r"a new conversation[\s\S]*you: $")
    screen.type("/quit")
    assert screen.process.wait(60) == 0
