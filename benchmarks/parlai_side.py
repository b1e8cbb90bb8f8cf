"""What ParlAI does with our data and models, in a process of ParlAI's own Python. It imports nothing of this project.

    PYTHON parlai_side.py train LOG STEPS -- FLAGS OF train_model     its TrainLoop, with a line for every tenth step
    PYTHON parlai_side.py reply MODEL TEXTS                           a model's greedy reply to each line of a file
    PYTHON parlai_side.py steps ASKED                                 training steps on demand (step_server.py)

Lines of LOG are JSON: {"kind": "train", "step": N} after a step, {"kind": "valid", "step": N, "ppl": X} after a
validation, {"kind": "begin"} when the first step can begin; whoever reads it knows when they came. Replies go to
standard output, one JSON string a line, after a line `replies:`. ASKED is a JSON file, written by parlai_step.py.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parlai.core.agents import create_agent, create_agent_from_model_file
from parlai.core.message import Message
from parlai.scripts.train_model import TrainLoop, setup_args
from step_server import serve

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
    elif arguments[0] == "steps":
        steps(json.loads(Path(arguments[1]).read_text(encoding="utf-8")))
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


def steps(asked: dict[str, Any]) -> None:
    """Be a server of the agent's own training steps, on one batch whose texts are exactly as long as they may be."""

    def start() -> tuple[Any, dict[str, Any]]:
        torch.set_num_threads(asked["threads"])
        create_agent(setup_args().parse_args(asked["teacher"])).save(asked["teacher_file"])
        agent = create_agent(setup_args().parse_args(asked["student"]))
        observed = _full_batch(agent, asked)
        batch = agent.batchify(observed)
        shapes = [list(batch.text_vec.shape), list(batch.label_vec.shape)]
        rows = asked["batch"]
        if shapes != [[rows, asked["context_tokens"]], [rows, asked["label_tokens"]]]:
            raise SystemExit(f"ParlAI's batch is {shapes}, not as long as asked")

        def step() -> None:
            agent.batch_act(observed)

        step()  # its report names the losses
        teacher = agent._get_teacher_model()
        return step, {
            "precision": "fp32",
            "trained": sum(p.numel() for p in agent.model.parameters() if p.requires_grad),
            "teacher": sum(p.numel() for p in teacher.parameters() if p.requires_grad),
            "vocabulary": len(agent.dict),
            "optimizer": repr(agent.optimizer).split("\n")[0],
            "losses": sorted(name for name in agent._local_metrics if name.endswith("loss")),
        }

    serve(start, asked["warm_up"])


def _full_batch(agent: Any, asked: dict[str, Any]) -> list[Any]:
    """What the agent makes of texts of random words, each a dialogue of its own; its end token ends every label."""
    drawn = random.Random(3)
    observed = []
    for _ in range(asked["batch"]):
        text, label = (
            " ".join(drawn.choices(asked["words"], k=count))
            for count in (asked["context_tokens"], asked["label_tokens"] - 1)
        )
        agent.reset()
        observed.append(agent.observe(Message({"text": text, "labels": [label], "episode_done": True})))
    return observed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
