"""Runs that are killed, stopped, damaged and started again end bit for bit where an undisturbed run ends."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from distill_engine import run as run_module
from distill_engine.cluster.exit_codes import BAD_INPUT, STOPPED_AND_SAVED
from distill_engine.telemetry.jsonl import read_history

STEPS = 18
PLAIN_STEPS = 14
KEY = "0123456789abcdef" * 2 + "cafe1234"  # has the shape of a W&B key
CLOCKS = ("time/", "memory/", "train/tokens_per_second", "valid/seconds", "valid/sample/seconds")


def resume_recipe(base: dict, family: str) -> dict:
    """Dropout, accumulation, balanced weights, a plateau that drops at once, validations and saves that do not
    coincide."""
    base["name"] = f"resume-{family}"
    by_gradient = {"balance": "gradient_alignment", "balance_every_steps": 5}
    base["losses"] |= by_gradient if family == "bart" else {"balance": "initial_scale", "balance_start_steps": 10}
    base["batch"] = {"per_rank": 2, "accumulation_steps": 2}
    base["schedule"] = {"name": "reduce_on_plateau", "patience": 0, "threshold": 0.2, "warmup_steps": 2}
    base["validation"] = {"every_steps": 3, "patience": None}
    base["checkpoint"] = {"every_steps": 2, "keep_last": 3}
    base["student"]["attention_dropout"] = 0.1
    return base


# ---- what a run left ---------------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / checkpoints(folder)[-1]


def steps_recorded(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return max((record.step for record in read_history(file)), default=0) if file.exists() else 0


def history(folder: Path) -> list[tuple]:
    """Everything measured but what depends on the clock."""
    return [
        (record.kind, record.step, {name: v for name, v in record.values.items() if not name.startswith(CLOCKS)})
        for record in read_history(folder / "metrics.jsonl")
    ]


def state(folder: Path) -> dict[str, object]:
    """What the last checkpoint holds: weights, optimizer, random streams, data position and every decision."""
    last = last_checkpoint(folder)
    files = [*last.glob("student/engine/*.pt"), *last.glob("rng/*.pt")]
    held = {str(file.relative_to(last)): torch.load(file, map_location="cpu", weights_only=False) for file in files}
    decided = ("batches", "balance", "learning_rate", "keep_best", "early_stopping")
    return held | {name: (last / name / "state.json").read_text() for name in decided}


def differences(one, other, path: str = "") -> list[str]:
    """Where two nested values are not equal in every bit."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        same = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        return [] if same and one.dtype == other.dtype and torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        if list(one) != list(other):
            return [f"{path}: other keys"]
        return [found for key in one for found in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: other length"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for index, pair in pairs for found in differences(*pair, f"{path}/{index}")]
    if type(one) is not type(other):
        return [f"{path}: other type"]
    own = getattr(one, "__dict__", None)
    return differences(own, other.__dict__, path) if own else [] if one == other or one != one else [path]


def assert_equal_runs(one: Path, other: Path) -> None:
    assert last_checkpoint(one).name == last_checkpoint(other).name
    held = state(one)
    assert any("optim_states" in name for name in held) and any("model_states" in name for name in held)
    assert differences(held, state(other)) == []
    assert history(one) == history(other)
    exports = [(folder / "best" / "model.safetensors").read_bytes() for folder in (one, other)]
    assert exports[0] == exports[1]


# ---- two ranks, all terms, killed and stopped ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(program, base_recipe, write_recipe, fp32, tmp_path_factory):
    """(folder of a run left alone, folder of one that was killed and stopped, what was seen on the way)."""
    recipe = resume_recipe(base_recipe("blenderbot"), "blenderbot")
    recipe["student"] |= {"init": "random", "width": 16, "ffn_width": 24, "heads": 4}
    recipe["losses"]["weights"] |= {"embedding": 2.0, "self_attention": 1.0, "cross_attention": 1.0, "encoder": 1.0}
    recipe["losses"]["feature_steps"] = 11  # with dropout: what is captured no more draws other random numbers
    recipe["rollout"] = {"source": "student", "share": 0.5, "new_tokens": 8}  # of the student's own samples
    recipe["stop"] = {"max_steps": STEPS}
    recipe["logging"]["wandb"] = {"mode": "offline"}
    folder, home = tmp_path_factory.mktemp("two_ranks"), tmp_path_factory.mktemp("home")
    file = write_recipe(recipe)
    env = {"WANDB_API_KEY": KEY, "HOME": str(home), "TMPDIR": str(home)}
    quiet, hurt = folder / "quiet", folder / "hurt"
    seen: dict[str, object] = {"home": home}

    def arguments(run_dir: Path) -> list:
        return ["--recipe", file, "--ds_config", fp32, "--run-dir", run_dir]

    program.run(*arguments(quiet), ranks=2, env=env).well()

    first = program.start(*arguments(hurt), ranks=2, env=env)
    first.until(lambda: steps_recorded(hurt) >= 5, "step 5")
    seen["killed"] = first.kill_ranks()
    seen["killed code"] = first.ended().code
    seen["killed at"], seen["complete then"] = steps_recorded(hurt), checkpoints(hurt)
    seen["id"] = (hurt / "wandb_run_id").read_text()

    second = program.start(*arguments(hurt), ranks=2, env=env)
    second.until(lambda: "resumed after step" in second.said(), "resuming")
    second.until(lambda: steps_recorded(hurt) >= 12, "step 12")
    second.ranks()[1].send_signal(signal.SIGUSR1)
    stopped = second.ended()
    seen["stopped code"], seen["stopped"] = stopped.code, stopped.said
    seen["stopped at"] = steps_recorded(hurt)
    seen["complete when stopped"] = checkpoints(hurt)

    last = program.run(*arguments(hurt), ranks=2, env=env).well()
    seen["said"] = first.said() + second.said() + last.said
    return quiet, hurt, seen


def test_the_disturbances_happened(two_ranks):
    _, _, seen = two_ranks
    assert seen["killed"] == 2 and seen["killed code"] != 0
    assert 5 <= seen["killed at"] < STEPS and seen["complete then"]
    assert seen["stopped code"] == STOPPED_AND_SAVED, seen["stopped"]
    assert "Traceback" not in seen["stopped"]
    assert 12 <= seen["stopped at"] < STEPS
    assert seen["complete when stopped"][-1] == f"step-{seen['stopped at']:08d}", "saved where it stopped"
    assert f"resumed after step {seen['stopped at']}" in seen["said"]


def test_two_ranks_killed_and_stopped_end_like_an_undisturbed_run(two_ranks):
    quiet, hurt, _ = two_ranks
    assert_equal_runs(quiet, hurt)
    rates = [values["train/lr"] for kind, _, values in history(quiet) if kind == "train"]
    assert len(rates) == STEPS and rates[-1] < max(rates), "the plateau has moved the learning rate"
    assert json.loads((last_checkpoint(quiet) / "rollout" / "state.json").read_text())["steps"] >= STEPS
    shares = [values["train/rollout/sampled_share"] for kind, _, values in history(quiet) if kind == "train"]
    assert set(shares) == {0.0, 0.5, 1.0}, "micro-batches, two a step, are gold or sampled"
    lengths = [values.get("train/rollout/sample_tokens", 0) for kind, _, values in history(quiet) if kind == "train"]
    assert all((0 < length <= 8) == (share > 0) for length, share in zip(lengths, shares, strict=True))


def test_the_wandb_run_goes_on_under_its_id_and_the_key_is_nowhere(two_ranks):
    quiet, hurt, seen = two_ranks
    assert (hurt / "wandb_run_id").read_text() == seen["id"]
    run_id = seen["id"].strip()
    assert len(list((hurt / "wandb").glob(f"offline-run-*-{run_id}"))) == len(list((hurt / "wandb").glob("offline-*")))
    assert len(list((hurt / "wandb").glob("offline-*"))) >= 2
    assert (quiet / "wandb_run_id").read_text() != seen["id"]
    files = [path for top in (quiet, hurt, seen["home"]) for path in top.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in seen["said"]


# ---- one rank, activation checkpointing ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(base_recipe) -> dict:
    recipe = resume_recipe(base_recipe("bart"), "bart")
    recipe["student"]["activation_checkpointing"] = True
    recipe["teacher"]["placement"] = "zero3"  # one rank would choose a replica
    recipe["losses"]["weights"] |= {"self_attention": 1.0, "cross_attention": 1.0}
    recipe["stop"] = {"max_steps": PLAIN_STEPS}
    return recipe


@pytest.fixture(scope="module")
def command(plain, write_recipe, fp32):
    """Folder -> the arguments that start the run in it, and start it again."""
    file = write_recipe(plain)
    return lambda folder: ["--recipe", file, "--ds_config", fp32, "--run-dir", folder]


@pytest.fixture(scope="module")
def finished(program, command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "quiet"
    program.run(*command(folder)).well()
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, symlinks=True)
    return folder


@pytest.fixture
def call(monkeypatch, capfd):
    """The program in this process, for starts that are refused: exit code and stderr."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)

    def run(arguments: list) -> tuple[int, str]:
        capfd.readouterr()
        code = run_module.main([str(word) for word in arguments])
        return code, capfd.readouterr().err

    return run


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_stopped_run_goes_on_and_a_second_one_is_kept_out(program, command, call, finished, tmp_path):
    folder = tmp_path / "run"
    run = program.start(*command(folder))
    run.until(lambda: steps_recorded(folder) >= 4, "step 4")
    run.process.send_signal(signal.SIGSTOP)  # it cannot end while the second one tries
    code, err = call(command(folder))
    assert code == BAD_INPUT and "in use by another run" in err and f'"pid": {run.process.pid}' in err, err
    run.process.send_signal(signal.SIGTERM)
    run.process.send_signal(signal.SIGCONT)
    ended = run.ended()
    assert ended.code == STOPPED_AND_SAVED and "Traceback" not in ended.said, ended.said
    assert 4 <= steps_recorded(folder) < PLAIN_STEPS
    assert checkpoints(folder)[-1] == f"step-{steps_recorded(folder):08d}"
    again = program.run(*command(folder)).well()
    assert "resumed after step" in again.said
    assert_equal_runs(finished, folder)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(program, command, finished, copy):
    names = checkpoints(copy)
    flip(next((copy / "checkpoints" / names[-1]).glob("student/engine/*optim_states.pt")))
    damaged = copy / "checkpoints" / names[-2] / "rng" / "rank_00000.pt"
    os.truncate(damaged, damaged.stat().st_size // 2)
    ended = program.run(*command(copy)).well()
    assert f"{names[-1]}: student/engine" in ended.said and "differs from its digest" in ended.said
    assert f"{names[-2]}: rng/rank_00000.pt has" in ended.said and "truncated" in ended.said
    assert f"going back to {names[-3]}" in ended.said
    assert f"resumed after step {int(names[-3].removeprefix('step-'))}" in ended.said
    # a damaged folder keeps its name, so the good one of the same step gets another number
    assert last_checkpoint(copy).stem == last_checkpoint(finished).stem == f"step-{PLAIN_STEPS:08d}"
    assert differences(state(finished), state(copy)) == []
    assert history(finished) == history(copy)


def test_a_finished_run_goes_on_with_a_higher_limit_and_its_teacher_elsewhere(program, command, finished, copy):
    more = PLAIN_STEPS + 3
    changes = (f"stop.max_steps={more}", "teacher.placement=replica", "teacher.window=true")
    ended = program.run(*command(copy), *(part for change in changes for part in ("--set", change))).well()
    assert f"stop.max_steps: {PLAIN_STEPS} -> {more}" in ended.said, "said, since it differs"
    assert "teacher.placement: 'zero3' -> 'replica'" in ended.said
    assert (finished / "teacher_ds_config.json").is_file() and not (copy / "teacher_ds_config.json").exists()
    assert steps_recorded(copy) == more and checkpoints(copy)[-1] == f"step-{more:08d}"
    assert history(copy)[: len(history(finished))] == history(finished)
    assert yaml.safe_load((copy / "recipe.yaml").read_text())["stop"]["max_steps"] == more


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate: 0.01 -> 0.5"),
        ("losses.weights.hidden=9.0", "losses.weights.hidden: 2.0 -> 9.0"),
        ("seed=7", "seed: 1 -> 7"),
        ("student.decoder_layers=1", "student.decoder_layers: 2 -> 1"),
        ("batch.accumulation_steps=4", "batch.accumulation_steps: 2 -> 4"),
    ],
)
def test_a_folder_of_another_recipe_is_refused_and_left_alone(call, command, copy, setting, difference):
    before = snapshot(copy)
    code, err = call([*command(copy), "--set", setting])
    assert code == BAD_INPUT and "holds a run of another recipe" in err and difference in err, err
    assert "Traceback" not in err and err.count(" -> ") == 2, "the one difference, under its heading"
    assert snapshot(copy) == before


def test_a_limit_that_shapes_the_learning_rate_may_not_change(call, plain, write_recipe, fp32, tmp_path):
    linear = plain | {"schedule": {"name": "linear"}}
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(write_recipe(linear), folder / "recipe.yaml")
    file = write_recipe(linear | {"stop": {"max_steps": PLAIN_STEPS + 3}})
    code, err = call(["--recipe", file, "--ds_config", fp32, "--run-dir", folder])
    assert code == BAD_INPUT and f"stop.max_steps: {PLAIN_STEPS} -> {PLAIN_STEPS + 3}" in err, err
