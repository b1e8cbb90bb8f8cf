"""Runs that are killed at random moments, signalled while they save, suspended, and started with other data.

Started again they end bit for bit as if never disturbed, or say why they cannot go on.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from distill_engine.cluster.exit_codes import BAD_INPUT, STOPPED_AND_SAVED
from distill_engine.telemetry.jsonl import read_history

WORKER = Path(__file__).with_name("kill_worker.py")
ROOT = Path(__file__).parents[2]
BF16 = ROOT / "ds_configs" / "zero2_bf16.json"
KILLED = -signal.SIGKILL
STEPS_OF_AN_ATTEMPT = 3  # holds a validation and one or two saves, whatever step it begins at
CLOCKS = ("time/", "memory/", "train/tokens_per_second", "valid/seconds")
TIMED = {"progress", "validate_when", "log_when", "save_when"}  # parts that hold seconds

# phase, event, largest count: each about as often as the others. An attempt has two saves and one validation.
DANGERS = [
    ("starting", "file", 40),
    ("resuming", "file", 15),
    ("training", "beat", 20),
    ("validating", "beat", 3),
    ("exporting", "file", 30),
    ("saving", "file", 30),
    ("writing", "file", 50),
    ("writing", "byte", 800_000),
    ("committing", "byte", 4_000),
    ("committing", "file", 25),
    ("tidying", "file", 40),
    (None, "second", 2.0),
]
PHASES = {phase for phase, _, _ in DANGERS if phase}
DANGERS_OF_TWO = [  # one rank of two writes less
    ("training", "beat", 20),
    ("saving", "beat", 20),
    ("writing", "file", 4),
    ("writing", "byte", 60_000),
    ("committing", "byte", 2_000),
    ("tidying", "file", 8),
]


class Worker:
    """The warm process that forks the attempts."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._log = folder / "said.txt"
        self._modules = folder / "modules.json"
        self.compiled = folder / "extensions"
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment
            | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "TORCH_EXTENSIONS_DIR": str(self.compiled)},
        )

    def _ask(self, **order) -> dict:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the worker died"
        return json.loads(line)

    def attempt(self, arguments: list, run_dir: Path, plan: dict | None = None, ranks: int = 1, **more) -> dict:
        words = [str(word) for word in (*arguments, "--run-dir", run_dir)]
        return self._ask(arguments=words, run_dir=str(run_dir), plan=plan, ranks=ranks, log=str(self._log), **more)

    def warm_up(self, arguments: list, run_dir: Path, teacher: str) -> None:
        """One whole run; what it imported and read is then in the memory of all attempts."""
        answer = self.attempt(arguments, run_dir, modules=str(self._modules))
        assert answer["codes"] == [0], self.said()
        self._ask(warm_up=str(self._modules), teacher=teacher)

    def said(self) -> str:
        return self._log.read_text()[-6000:]


@pytest.fixture(scope="module")
def make_arguments(base_recipe, write_recipe, fp32):
    """(steps, ranks, teacher, training data) -> arguments of the program, but for its run folder."""

    def make(steps: int, ranks: int, teacher: str | Path = "blenderbot", data: Path | None = None) -> list:
        recipe = base_recipe(teacher)
        recipe["student"] |= {"init": "random", "width": 16, "ffn_width": 24, "heads": 4}
        recipe["batch"] = {"per_rank": 4 // ranks}
        recipe["schedule"] = {"name": "reduce_on_plateau", "patience": 0, "threshold": 0.2, "warmup_steps": 2}
        recipe["validation"] = {"every_steps": 3, "patience": None, "samples": 0}
        recipe["checkpoint"] = {"every_steps": 2, "keep_last": 2}
        recipe["stop"] = {"max_steps": steps}
        if data is not None:
            recipe["data"]["datasets"][0]["train"] = str(data)
        return ["--recipe", write_recipe(recipe), "--ds_config", fp32]

    return make


@pytest.fixture(scope="module")
def worker(program, make_arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    worker = Worker(folder, program.environment())
    arguments = make_arguments(4, 1)
    teacher = yaml.safe_load(Path(arguments[1]).read_text())["teacher"]["path"]
    worker.warm_up(arguments, folder / "first", teacher)
    yield worker
    worker.process.stdin.close()
    worker.process.wait(timeout=30)


def plans(dangers: list[tuple], count: int, ranks: int) -> list[dict]:
    """Every danger about equally often, in random order, at random moments; where none comes, at a step."""
    draw = random.Random(ranks)
    chosen = [dangers[n % len(dangers)] for n in range(count)]
    draw.shuffle(chosen)
    made = []
    for phase, event, largest in chosen:
        moment = draw.uniform(0.05, largest) if event == "second" else draw.randint(1, largest)
        plan = {"phase": phase, "event": event, "count": moment, "steps": STEPS_OF_AN_ATTEMPT}
        made.append(plan | {"rank": 0 if phase in ("committing", "tidying", "exporting") else draw.randrange(ranks)})
    return made


def last_checkpoint(folder: Path) -> Path:
    """The newest; the program itself orders them by step as well."""
    return max((folder / "checkpoints").glob("step-*"))


def final_state(folder: Path) -> dict[str, bytes]:
    """Weights, optimizer, random streams, data position and decisions, and the exported student: every byte of them."""
    last = last_checkpoint(folder)
    files = {str(path.relative_to(last)): path for path in last.rglob("*") if path.is_file()}
    held = {name: path for name, path in files.items() if "/" in name and name.split("/")[0] not in TIMED}
    held["best"] = folder / "best" / "model.safetensors"
    return {name: path.read_bytes() for name, path in held.items()}


def history(folder: Path) -> list[tuple]:
    """Everything measured but what depends on the clock."""
    return [
        (record.kind, record.step, {name: v for name, v in record.values.items() if not name.startswith(CLOCKS)})
        for record in read_history(folder / "metrics.jsonl")
    ]


@pytest.mark.timeout(1800)  # a minute on a machine that has nothing else to do
def test_killed_at_fifty_random_moments_it_ends_like_an_undisturbed_run(worker, make_arguments, tmp_path, capsys):
    struck = survive(worker, make_arguments, tmp_path, plans(DANGERS, count=50, ranks=1), ranks=1)
    tell(struck, 1, capsys)
    assert struck.total() == 50 and struck.keys() >= PHASES, struck


def test_two_ranks_of_which_one_is_killed_again_and_again(worker, make_arguments, tmp_path, capsys):
    struck = survive(worker, make_arguments, tmp_path, plans(DANGERS_OF_TWO, count=6, ranks=2), ranks=2)
    tell(struck, 2, capsys)
    assert struck.keys() >= {"writing", "committing"}, struck


def tell(struck: Counter, ranks: int, capsys) -> None:
    phases = ", ".join(f"{count} while {phase}" for phase, count in struck.most_common())
    with capsys.disabled():
        print(f"\n{struck.total()} kills of a run of {ranks} rank(s): {phases}")


def survive(worker, make_arguments, folder: Path, plans: list[dict], ranks: int) -> Counter:
    """How often each phase was struck, of a run that was killed as planned and then let go on."""
    arguments = make_arguments(len(plans) * STEPS_OF_AN_ATTEMPT, ranks)  # it cannot end before the last kill
    quiet, hurt = folder / "quiet", folder / "hurt"
    assert worker.attempt(arguments, quiet, ranks=ranks)["codes"] == [0] * ranks, worker.said()
    struck: Counter[str] = Counter()
    for plan in plans:
        answer = worker.attempt(arguments, hurt, plan, ranks)
        assert answer["codes"][plan["rank"]] == KILLED, (plan, answer, worker.said())
        struck[answer["phases"][plan["rank"]]] += 1
    last = worker.attempt(arguments, hurt, ranks=ranks)
    assert last["codes"] == [0] * ranks, worker.said()
    assert_same_end(hurt, quiet)
    return struck


def assert_same_end(hurt: Path, quiet: Path) -> None:
    assert history(hurt) == history(quiet)
    mine, expected = final_state(hurt), final_state(quiet)
    assert mine.keys() == expected.keys() and any("optim_states" in name for name in mine)
    assert [name for name in mine if mine[name] != expected[name]] == []


# ---- other faults of a whole run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quiet(worker, make_arguments, tmp_path_factory) -> tuple[list, Path]:
    """Arguments and folder of a short run that nothing happened to."""
    folder = tmp_path_factory.mktemp("short") / "quiet"
    arguments = make_arguments(6, 1)
    assert worker.attempt(arguments, folder)["codes"] == [0], worker.said()
    return arguments, folder


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        (["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT", "SIGTERM", "SIGTERM"], STOPPED_AND_SAVED),
        (["SIGINT", "SIGINT"], -signal.SIGINT),
    ],
    ids=["several at once stop it after the save", "a second Ctrl-C ends it at once"],
)
def test_signals_while_it_saves(worker, quiet, tmp_path, signals, code):
    arguments, undisturbed = quiet
    folder = tmp_path / "run"
    plan = {"rank": 0, "phase": "saving", "event": "beat", "count": 20, "signals": signals}  # the second save
    assert worker.attempt(arguments, folder, plan)["codes"] == [code], worker.said()
    steps = [record.step for record in read_history(folder / "metrics.jsonl")]
    if code == STOPPED_AND_SAVED:
        assert last_checkpoint(folder).name == f"step-{max(steps):08d}", "one save, of the step in hand"
    assert worker.attempt(arguments, folder)["codes"] == [0], worker.said()
    assert_same_end(folder, undisturbed)


def test_a_suspended_rank_is_found_by_the_others(worker, make_arguments, tmp_path):
    arguments = [*make_arguments(6, 2), "--set", "stop.hang_seconds=4"]
    plan = {"rank": 1, "phase": "training", "event": "beat", "count": 12, "signals": ["SIGSTOP"]}
    answer = worker.attempt(arguments, tmp_path / "run", plan, ranks=2)
    assert answer["codes"] == [STOPPED_AND_SAVED, KILLED], "one ends for another start, its launcher ends the other"
    stacks = (tmp_path / "run" / "hang" / "rank_0.txt").read_text()
    assert "made no progress for 4 s" in stacks and "distributed_c10d.py" in stacks


def test_nothing_is_compiled_so_no_lock_of_a_killed_build_can_stop_a_start(worker, quiet):
    assert not worker.compiled.exists() or not list(worker.compiled.rglob("*"))


def other_word(folder: Path) -> None:
    text = (folder / "train.txt").read_text()
    (folder / "train.txt").write_text(text.replace("dog", "cat", 1))


def other_teacher(folder: Path) -> None:
    file = folder / "teacher" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"activation_function": "relu"}))


def open_to_all(folder: Path) -> None:
    (folder / "run" / "checkpoints").chmod(0o777)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (other_word, [], "belongs to another run (checkpoint -> now):\n  data: "),
        (other_teacher, [], "belongs to another run (checkpoint -> now):\n  teacher: "),
        (lambda folder: None, ["--ds_config", BF16], '\n  precision: "fp32" -> "bf16"'),
        (open_to_all, [], "can be written by every user"),
    ],
    ids=["data", "teacher", "precision", "foreign"],
)
def test_a_checkpoint_of_other_data_teacher_or_precision_is_refused(
    worker, make_arguments, make_teacher, data, tmp_path, change, options, said
):
    make_teacher(tmp_path / "teacher", "blenderbot")
    shutil.copy(data / "train.txt", tmp_path)
    arguments = make_arguments(2, 1, tmp_path / "teacher", tmp_path / "train.txt")
    assert worker.attempt(arguments, tmp_path / "run")["codes"] == [0], worker.said()
    before = final_state(tmp_path / "run")
    change(tmp_path)
    assert worker.attempt([*arguments, *options], tmp_path / "run")["codes"] == [BAD_INPUT]
    assert said in worker.said()
    assert final_state(tmp_path / "run") == before
