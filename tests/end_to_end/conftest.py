"""What the end-to-end tests stand on: tiny teachers, data files, recipes, and the program run as a user runs it.

Everything goes through distill_engine/run.py, in processes of its own: forked from a warm one (tests/warm.py), or by
`deepspeed` and `python` where that is what a test is about.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
)
from warm import Run, Warm

ROOT = Path(__file__).parents[2]
RUN = ROOT / "distill_engine" / "run.py"
TOKENIZER = ROOT / "recipes" / "demo" / "tokenizer"
FP32 = ROOT / "ds_configs" / "zero2_fp32.json"
LIMIT_SECONDS = 240  # of one run; it takes a tenth of that on a free machine
MODELS = {
    "blenderbot": (BlenderbotConfig, BlenderbotForConditionalGeneration),
    "bart": (BartConfig, BartForConditionalGeneration),
}


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.end_to_end)


# ---- the program -------------------------------------------------------------------------------------------------


class Started:
    """A running program; what it says goes to files, so that it never waits for a reader."""

    def __init__(self, begin: Callable[[Path, Path], Run | subprocess.Popen[bytes]], folder: Path) -> None:
        self.out, self.err = folder / "stdout.txt", folder / "stderr.txt"
        self.out.touch()
        self.err.touch()
        self.process = begin(self.out, self.err)

    def until(self, fact: Callable[[], bool], what: str) -> None:
        """Wait for something that the run is about to do."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not fact():
            assert self.process.poll() is None, f"it ended before {what}:\n{self.said()}"
            assert time.monotonic() < deadline, f"waited too long for {what}:\n{self.said()}"
            time.sleep(0.01)

    def ranks(self) -> list[psutil.Process]:
        """The processes that train: not the launcher, not the service of W&B. Forked ones by their ranks."""
        if isinstance(self.process, Run):
            return [psutil.Process(pid) for pid in self.process.pids]
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        scripts = [(process, process.cmdline()) for process in family]
        return [
            process
            for process, line in scripts
            if any(word.endswith("distill_engine/run.py") for word in line) and "deepspeed" not in " ".join(line)
        ]

    def kill_ranks(self) -> int:
        """SIGKILL for every rank at once; how many there were."""
        ranks = self.ranks()
        for rank in ranks:
            rank.send_signal(signal.SIGKILL)
        return len(ranks)

    def ended(self) -> "Ended":
        """Wait for its end; a run that hangs is killed and fails the test."""
        try:
            code = self.process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill_ranks()
            self.process.kill()
            pytest.fail(f"the program did not end in {LIMIT_SECONDS} s:\n{self.said()}")
        return Ended(code, self.out.read_text(), self.err.read_text())

    def said(self) -> str:
        return self.out.read_text() + self.err.read_text()


class Ended:
    """Exit code and words of a run that is over."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.said = out + err

    def well(self) -> "Ended":
        """Itself, if the run ended as it should."""
        assert self.code == 0, self.said
        assert "Traceback" not in self.said, self.said
        return self


class Program:
    """`distill_engine/run.py`, started in processes of its own: forked from a warm one, or as a user starts it."""

    def __init__(self, folder: Path, warm: Warm) -> None:
        self._folder, self._warm = folder, warm
        self._runs = 0

    def start(
        self, *arguments: str | Path, ranks: int = 1, env: dict[str, str] | None = None, script: Path = RUN,
        cold: bool = False,
    ) -> Started:  # fmt: skip
        """Forked ranks; where `cold`, from nothing: one rank with plain python, several by the deepspeed launcher."""
        self._runs += 1
        folder = self._folder / str(self._runs)
        folder.mkdir()
        words = [str(word) for word in (script, *arguments)]
        env = environment() | (env or {})
        if not cold:
            return Started(lambda out, err: self._warm.start(words, env, folder, out, err, ranks), folder)
        launcher = [sys.executable]
        if ranks > 1:
            deepspeed = str(Path(sys.executable).with_name("deepspeed"))
            launcher = [deepspeed, "--num_accelerators", str(ranks), "--master_port", str(free_port())]

        def begin(out: Path, err: Path) -> subprocess.Popen[bytes]:
            with out.open("wb") as said, err.open("wb") as errors:
                return subprocess.Popen([*launcher, *words], stdout=said, stderr=errors, env=env, cwd=folder)

        return Started(begin, folder)

    @staticmethod
    def environment() -> dict[str, str]:
        return environment()

    def run(
        self, *arguments: str | Path, ranks: int = 1, env: dict[str, str] | None = None, cold: bool = False
    ) -> Ended:
        return self.start(*arguments, ranks=ranks, env=env, cold=cold).ended()

    def distill(
        self, *arguments: str | Path, env: dict[str, str] | None = None, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The `distill` command, forked."""
        words = ["-m", "distill_engine.cli", *map(str, arguments)]
        return self._warm.run(words, environment() | (env or {}), folder or self._folder)


def environment() -> dict[str, str]:
    """Ours without what a launcher or W&B would take from it, on CPUs, without a network."""
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "WANDB_", "DISTILL_", "SLURM_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    bin_folder = str(Path(sys.executable).parent)
    return own | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{bin_folder}{os.pathsep}{own.get('PATH', '')}",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def program(tmp_path_factory, warm) -> Program:
    return Program(tmp_path_factory.mktemp("program"), warm)


# ---- what it works on --------------------------------------------------------------------------------------------


def tiny_config(family: str, **sizes):
    """2 encoder and 4 decoder layers of width 32; ids as the demo tokenizer has them."""
    common = {
        "vocab_size": len(AutoTokenizer.from_pretrained(TOKENIZER)),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "forced_eos_token_id": 2,
        "decoder_start_token_id": 2 if family == "bart" else 1,
        "scale_embedding": family == "blenderbot",
        "init_std": 0.2,  # a random teacher that still prefers some tokens to others
    }
    return MODELS[family][0](**common | sizes)


def save_teacher(folder: Path, family: str, **sizes) -> Path:
    """A random model with its tokenizer, as save_pretrained writes them."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = MODELS[family][1](tiny_config(family, **sizes))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_teacher() -> Callable[..., Path]:
    return save_teacher


@pytest.fixture(scope="session")
def teachers(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {family: save_teacher(folder / family, family) for family in MODELS}


WORDS = ["hello", "do", "you", "have", "a", "dog", "or", "cat", "my", "name", "is", "bo", "i", "like", "rain", "today"]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Small talk without sense in both file formats; odd sizes, so that ranks get unequal shares of validation."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(3)

    def phrase() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 7)))

    for split, count in (("train", 60), ("valid", 9)):
        lines = [f"text:{phrase()}\tlabels:{phrase()}\tepisode_done:{'True' * (n % 3 == 2)}" for n in range(count)]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
        talks = [{"dialog": [[{"id": name, "text": phrase()} for name in "abab"]]} for _ in range(count // 2)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    return folder


@pytest.fixture(scope="session")
def starts(program):
    """Plays starts of commands as ranks that are killed (killed_ranks_worker.py)."""
    command = [sys.executable, str(Path(__file__).with_name("killed_ranks_worker.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, bufsize=1, env=program.environment(), **pipes) as worker:

        def play(arguments: list[str], kill_at: list[int], launcher: bool = True) -> dict[str, list[int]]:
            asked = {"arguments": arguments, "ranks": len(kill_at), "kill_at": kill_at, "launcher": launcher}
            worker.stdin.write(json.dumps(asked) + "\n")
            return json.loads(worker.stdout.readline())

        yield play
        worker.stdin.close()


@pytest.fixture(scope="session")
def base_recipe(teachers, data) -> Callable[..., dict]:
    """A small sound recipe as a dictionary of its own; `teacher` None: a student alone."""

    def make(teacher: str | Path | None = "blenderbot") -> dict:
        sizes = {"encoder_layers": 1, "decoder_layers": 2, "dropout": 0.1}
        own = {"family": "blenderbot", "init": "random", "width": 16, "ffn_width": 32, "heads": 4, "positions": 64}
        return {
            "name": "tiny",
            # those of tests have random weights
            "teacher": {} if teacher is None else {"path": str(teachers.get(teacher, teacher)), "allow_noise": True},
            "student": {**sizes, **(own if teacher is None else {"init": "teacher_layers"})},
            "losses": {"weights": {"task": 1.0} | ({} if teacher is None else {"hidden": 2.0, "prediction": 3.0})},
            "data": {
                "datasets": [
                    {
                        "name": "parlai_text",
                        "label": "talk",
                        "train": str(data / "train.txt"),
                        "valid": str(data / "valid.txt"),
                    }
                ],
                "tokenizer": str(TOKENIZER),
                "context_tokens": 48,
                "label_tokens": 24,
            },
            "batch": {"per_rank": 4},
            "optimizer": {"learning_rate": 0.01, "clip_norm": 1.0},
            "validation": {"every_steps": 3},
            "stop": {"max_steps": 6},
            "logging": {"every_steps": 1, "wandb": {"mode": "disabled"}},
        }

    return make


@pytest.fixture(scope="session")
def write_recipe(tmp_path_factory) -> Callable[[dict], Path]:
    """Recipe as a dictionary -> file."""
    folder = tmp_path_factory.mktemp("recipes")

    def write(recipe: dict) -> Path:
        file = folder / f"{len(list(folder.iterdir()))}.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return file

    return write


@pytest.fixture(scope="session")
def fp32() -> Path:
    return FP32
