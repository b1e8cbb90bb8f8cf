"""What ParlAI does with our data and models, in a process of ParlAI's own Python. It imports nothing of this project.

    PYTHON parlai_side.py train LOG STEPS -- FLAGS OF train_model     its TrainLoop, with a line for every tenth step
    PYTHON parlai_side.py reply MODEL TEXTS                           a model's greedy reply to each line of a file

Lines of LOG are JSON: {"kind": "train", "step": N} after a step, {"kind": "valid", "step": N, "ppl": X} after a
validation, {"kind": "begin"} when the first step can begin; whoever reads it knows when they came. Replies go to
standard output, one JSON string a line, after a line `replies:`.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parlai.core.agents import create_agent_from_model_file
from parlai.scripts.train_model import TrainLoop, setup_args

_EVERY = 10
_BATCH = 256
# a teacher's datatype builds no optimizer: its default scheduler uses what PyTorch has dropped
_GREEDY = {
    "datatype": "valid",
    "inference": "greedy",
    "no_cuda": True,
    "skip_generation": False,
    "history_add_global_end_token": "end",
}


def main(arguments: list[str]) -> int:
    """Do what the first word says; returns the exit code."""
    if arguments[0] == "train":
        train(Path(arguments[1]), int(arguments[2]), arguments[arguments.index("--") + 1 :])
    else:
        said = reply(arguments[1], Path(arguments[2]).read_text(encoding="utf-8").splitlines())
        sys.stdout.write("".join(f"{line}\n" for line in ("replies:", *map(json.dumps, said))))
    return 0


class LoggedLoop(TrainLoop):
    """ParlAI's loop as it is; what it has reached is written to a file."""

    def __init__(self, opt: Any, log: Path, steps: int) -> None:
        super().__init__(opt)
        self._steps = steps
        self._file = log.open("a", encoding="utf-8")

    def _get_time(self, world: Any) -> Any:
        """Called once after every step."""
        if self._train_steps % _EVERY == 0:
            self._say(kind="train", step=self._train_steps)
        return super()._get_time(world)

    def validate(self) -> bool:
        """As ParlAI's, and the last one ends the run."""
        stop = bool(super().validate())
        self._say(kind="valid", step=self._train_steps, ppl=float(self.valid_reports[-1]["ppl"]))
        return stop or self._train_steps >= self._steps

    def _say(self, **values: Any) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()


def train(log: Path, steps: int, flags: list[str]) -> None:
    """`steps` steps of `parlai train_model FLAGS`, without the evaluations at its end."""
    opt = setup_args().parse_args(flags)
    seed = int(opt["seed"])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    loop = LoggedLoop(opt, log, steps)
    loop._say(kind="begin")
    for _ in loop.train_steps():
        pass


def reply(model: str, texts: list[str]) -> list[str]:
    """What the model's agent says to each text, greedily, each a dialogue of its own that ends with the end token."""
    agent = create_agent_from_model_file(model, _GREEDY)
    said: list[str] = []
    for start in range(0, len(texts), _BATCH):
        observed = []
        for text in texts[start : start + _BATCH]:
            agent.reset()
            observed.append(agent.observe({"text": text, "episode_done": True}))
        said += [answer.get("text", "") for answer in agent.batch_act(observed)]
    return said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
