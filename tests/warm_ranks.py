"""A process in which torch and deepspeed are imported once; ranks and commands are forked from it.

Tests get this module by its name.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "end_to_end" / "warm_worker.py"


class Server:
    """The worker process; `play` starts ranks in it."""

    def __init__(self, answers: Path, env: dict[str, str]) -> None:
        paths = (ROOT, ROOT / "tests", ROOT / "tests" / "multiprocess")
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(answers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "DISTILL_ENGINE_CACHE": str(answers / "cache")},
        )

    def play(self, ranks: int, **scenario) -> dict:
        self.process.stdin.write(json.dumps({"ranks": ranks, **scenario}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the worker died"
        return json.loads(line)

    def program(self, ranks: int, *words: object) -> tuple[int, str]:
        """One start of run.py: rank 0's exit code, and what all ranks said."""
        answer = self.play(ranks, program=[str(word) for word in words])
        assert len(set(answer["codes"])) == 1, answer
        return answer["codes"][0], "\n".join(answer["said"])

    def command(self, folder: Path, *words: object) -> tuple[int, str]:
        """One call of `distill` in a folder: its exit code, and what it said."""
        answer = self.play(1, command=[str(word) for word in words], folder=str(folder))
        return answer["codes"][0], answer["said"][0]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
