"""The commands as a user types them."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from distill_engine.cluster.exit_codes import BAD_INPUT
from distill_engine.commands.parlai import register
from distill_engine.recipe.yaml_text import parse_yaml

FIXTURE = Path(__file__).parents[2] / "fixtures" / "taskdata" / "tiny_parlai" / "blender"
COMMAND = ["-t", "convai2", "-m", "bart", "-vmt", "ppl", "-vtim", "60", "-bs", "3"]


@pytest.fixture(scope="module")
def run():
    app = typer.Typer()
    register(app)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_import_says_what_it_made(run, tmp_path):
    done = run("import-parlai", FIXTURE / "model", tmp_path / "hf")
    assert done.exit_code == 0, done.stderr
    assert "83,360 parameters (float32), 608 tokens" in done.stdout and "history_end_token: True" in done.stdout
    assert "train_position_tables: false" in done.stdout and (tmp_path / "hf" / "tokenizer.json").is_file()


def test_import_finds_named_files(run, tmp_path):
    (tmp_path / "model").symlink_to(FIXTURE / "model")
    missing = run("import-parlai", tmp_path / "model", tmp_path / "hf")
    assert missing.exit_code == BAD_INPUT and "model.opt: there is no such file" in missing.stderr
    named = ("--opt", FIXTURE / "model.opt", "--dict", FIXTURE / "model.dict")
    assert run("import-parlai", tmp_path / "model", tmp_path / "hf", *named).exit_code == 0


@pytest.mark.parametrize("dashes", [["--"], []])
def test_recipe_from_parlai_prints_yaml(run, dashes):
    done = run("recipe-from-parlai", "--name", "mine", *dashes, *COMMAND)
    assert done.exit_code == 0, done.stderr
    recipe = parse_yaml(done.stdout).data
    assert (recipe["name"], recipe["batch"]["per_rank"], recipe["student"]["family"]) == ("mine", 3, "bart")


def test_recipe_from_parlai_reads_an_opt(run):
    done = run("recipe-from-parlai", "--opt", FIXTURE / "model.opt", "--", "-bs", "5")
    assert parse_yaml(done.stdout).data["batch"]["per_rank"] == 5


@pytest.mark.parametrize("words, said", [([], "nothing to translate"), (["--", "--batchsiez", "3"], "--batchsize?")])
def test_mistakes_exit_as_bad_input(run, words, said):
    done = run("recipe-from-parlai", *words)
    assert done.exit_code == BAD_INPUT and said in done.stderr and done.stdout == ""


def test_translating_needs_no_torch():
    code = (
        "import sys, typer; from distill_engine.commands.parlai import register; app = typer.Typer(); register(app); "
        f"app({['recipe-from-parlai', '--', *COMMAND]!r}, standalone_mode=False); "
        "print('loaded:', [name for name in ('torch', 'numpy', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("loaded: []\n"), done.stdout + done.stderr
