"""Slurm's commands as small programs that write down what they were given."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
(folder / "environment.json").write_text(json.dumps(dict(os.environ)))
answers = folder / (pathlib.Path(sys.argv[0]).name + ".json")
said, code = json.loads(answers.read_text()).pop(0)
left = json.loads(answers.read_text())[1:]
answers.write_text(json.dumps(left or [[said, code]]))
(sys.stderr if code else sys.stdout).write(said)
sys.exit(code)
"""


class FakeSlurm:
    """answers: name of a command -> (text, exit code) of each call in turn; the last one repeats."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def answer(self, command: str, *answers: tuple[str, int]) -> None:
        program = self.folder / command
        program.write_text(PROGRAM.format(python=sys.executable, folder=str(self.folder)))
        program.chmod(0o755)
        (self.folder / f"{command}.json").write_text(json.dumps(answers))

    @property
    def calls(self) -> list[list[str]]:
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    @property
    def environment(self) -> dict[str, str]:
        return json.loads((self.folder / "environment.json").read_text())


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch) -> FakeSlurm:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    slurm = FakeSlurm(folder)
    slurm.answer("squeue", ("PENDING 1\n", 0))  # whatever is asked about a job: it waits for its second start
    return slurm


@pytest.fixture
def history() -> Callable[[Path], Path]:
    """A run folder with 20 steps of 2 seconds, two validations and a checkpoint."""

    def make(folder: Path) -> Path:
        (folder / "checkpoints" / "step-00000015").mkdir(parents=True)
        lines = [{"kind": "train", "step": n, "seconds": 2.0 * n, "values": {"train/loss": 1.0}} for n in range(1, 21)]
        for step, ppl in ((10, 30.0), (15, 25.5), (20, 26.0)):
            lines.append({"kind": "valid", "step": step, "seconds": 2.0 * step, "values": {"valid/ppl": ppl}})
        text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "train", "step": 21, "sec'
        (folder / "metrics.jsonl").write_text(text)
        return folder

    return make
