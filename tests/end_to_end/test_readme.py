"""The README is true: its commands run, its links lead somewhere, its claims about the demo hold."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SHORT = ("--set stop.max_steps=4 --set schedule.warmup_steps=1 --set validation.every_steps=2 "
         "--set data.datasets.0.train_examples=300 --set data.datasets.0.valid_examples=40")  # fmt: skip
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.partition(" #")[0].split() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [" ".join(words) for words in lines if words]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["WANDB_MODE"] = "offline"
    return subprocess.run(
        command, shell=True, cwd=ROOT, env=environment, text=True, capture_output=True, check=False, timeout=400
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_readme_has_the_commands_that_are_tested_here() -> None:
    assert commands() == [
        "make demo",
        "make test",
        "deepspeed distill_engine/run.py --ds_config ds_configs/zero2.json",
        "deepspeed distill_engine/run.py --ds_config ds_configs/zero2.json --recipe recipes/bb3b_tinybert.yaml"
        " --set data.root=FOLDER",
        "distill train --recipe recipes/demo.yaml --run-dir runs/one --set stop.max_steps=20",
        "python -m launcher plan recipes/bb3b_tinybert.yaml --nodes 4 --gpus-per-node 8 --gpu h100",
        "distill check --recipe recipes/demo.yaml",
    ]


def test_make_targets_call_what_the_readme_says() -> None:
    demo = subprocess.run(["make", "-n", "-B", "demo"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert "venv" in demo and "pip install" in demo and "benchmarks/demo.py" in demo
    tests = subprocess.run(["make", "-n", "-B", "test"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert "ruff check" in tests and "mypy" in tests and "pytest" in tests


def test_what_make_demo_runs(tmp_path: Path) -> None:
    done = run(f"{sys.executable} benchmarks/demo.py --rounds 1 --run-dir {tmp_path / 'demo'} {SHORT}", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "demo" / "summary.json").read_text())
    students = ("distilled", "shrink_and_finetune", "without_teacher")
    assert set(rows) == {"teacher", *students}
    for row in rows.values():
        assert set(row) == {"parameters", "valid_ppl", "token_accuracy", "teacher_agreement", "ms_per_reply"}
    assert rows["teacher"]["teacher_agreement"] == 1.0
    assert len({rows[name]["parameters"] for name in students}) == 1
    assert rows["distilled"]["parameters"] < rows["teacher"]["parameters"]
    assert rows["teacher"]["valid_ppl"] < rows["distilled"]["valid_ppl"] < rows["without_teacher"]["valid_ppl"]
    assert rows["shrink_and_finetune"]["valid_ppl"] < rows["without_teacher"]["valid_ppl"]
    for name in ("best", "checkpoints", "metrics.jsonl", "recipe.yaml", "wandb", "ds_config.json"):
        assert (tmp_path / "demo" / name).exists(), name
    assert "shrink and fine-tune" in done.stdout and "without teacher" in done.stdout
    assert "summary.json" in done.stdout and "failed" not in done.stdout
    for name in ("report.html", "report_card/report_card.html", "report_card/report_card.md"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000, name
    assert "## Report card" in (tmp_path / "demo" / "best" / "README.md").read_text()


def test_the_one_command(tmp_path: Path) -> None:
    command = commands()[2].replace("deepspeed ", f"deepspeed --master_port {free_port()} ")
    done = run(f"{command} {SHORT} --run-dir {tmp_path / 'run'}", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    config = json.loads((tmp_path / "run" / "ds_config.json").read_text())
    if "training in bf16" in done.stdout:  # a CPU cannot train in fp16, and says what it does instead
        assert config["bf16"]["enabled"] and not config.get("fp16", {}).get("enabled", False)
    else:
        assert config["fp16"]["enabled"]


def test_the_blenderbot_3b_command_says_what_is_missing(tmp_path: Path) -> None:
    command = commands()[3].replace("deepspeed ", f"{sys.executable} ")
    named = run(command, tmp_path)  # nobody has filled FOLDER
    assert named.returncode == 78
    assert "data.root is 'FOLDER', which is no folder" in named.stderr and "distill data fetch" in named.stderr
    done = run(command.replace(" --set data.root=FOLDER", ""), tmp_path)
    assert done.returncode == 78
    assert "Traceback" not in done.stderr
    for task in ("blended_skill_talk", "wizard_of_wikipedia", "convai2:normalized", "empathetic_dialogues"):
        assert task in done.stderr
    assert "data.root is null" in done.stderr and "distill data fetch" in done.stderr


def test_train_check_evaluate_and_export_by_the_console_script(tmp_path: Path, program) -> None:
    """Each command once by the script; what it says in other cases from a warm process."""
    one = tmp_path / "one"
    done = run(commands()[4].replace("runs/one", str(one)).replace("max_steps=20", "max_steps=20 " + SHORT), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    checked = run(commands()[6], tmp_path)
    assert checked.returncode == 0 and "no problems" in checked.stdout
    numbers = tmp_path / "numbers.json"
    evaluated = run(f"distill evaluate {one} --latency --json {numbers}", tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    row = json.loads(numbers.read_text())[str(one)]
    last_validation = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    best = min(record["values"]["valid/ppl"] for record in last_validation if record["kind"] == "valid")
    assert row["ppl"] == pytest.approx(best, rel=2e-2)  # validated in bf16 or fp16, evaluated in float32
    assert row["ms_per_reply"] > 0 and 0 <= row["teacher_acc"] <= 1
    best_export, last_export = tmp_path / "best", tmp_path / "last"
    for target, exported in (
        (best_export, run(f"distill export {one} {best_export} --which best", tmp_path)),
        (last_export, program.distill("export", one, last_export, "--which", "last")),
    ):
        assert exported.returncode == 0, exported.stderr
        assert (target / "model.safetensors").is_file() and (target / "tokenizer.json").is_file()
    again = program.distill("export", one, best_export)
    assert again.returncode == 78 and "exists already" in again.stderr and "Traceback" not in again.stderr
    nothing = program.distill("evaluate", tmp_path / "nowhere")
    assert nothing.returncode == 78 and "--recipe" in nothing.stderr and "Traceback" not in nothing.stderr


def test_the_plan_for_a_cluster(tmp_path: Path) -> None:
    done = run(commands()[5].replace("python ", f"{sys.executable} "), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "teacher shard" in done.stdout and "It fits." in done.stdout


def test_every_command_of_the_table_is_there_and_helps(program) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`distill ([a-z-]+(?: (?:fetch|show|push))?)", text))
    assert len(named) >= 14
    for command in ("", *sorted(named)):
        done = program.distill(*command.split(), "--help")
        assert done.returncode == 0, f"distill {command} --help: {done.stderr}"
        assert len(done.stdout.splitlines()) > 8, command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
