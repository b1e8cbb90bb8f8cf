"""A run that goes on with another number of ranks sees the same examples and ends where it would have ended."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from distill_engine.cluster.exit_codes import BAD_INPUT
from distill_engine.setup.run_folder import LOCK_FILE
from distill_engine.telemetry.jsonl import read_history

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("resize_worker.py")
STEPS = 10


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


@pytest.fixture(scope="module")
def server(program, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("resize"), program.environment())
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=30)


def well(answer: tuple[int, str]) -> str:
    code, said = answer
    assert code == 0 and "Traceback" not in said, said
    return said


# ---- the whole program: 2 ranks -> 1 -> 3 --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(server, base_recipe, write_recipe, fp32):
    recipe = base_recipe("blenderbot")
    recipe["student"] |= {"init": "random", "width": 16, "ffn_width": 24, "heads": 4, "dropout": 0.0}
    recipe["student"]["attention_dropout"] = 0.0
    recipe["losses"]["weights"] |= {"self_attention": 1.0, "cross_attention": 1.0, "encoder": 1.0}
    recipe["batch"] = {"per_rank": 3}
    recipe["optimizer"] |= {"weight_decay": 0.1}
    recipe["schedule"] = {"name": "reduce_on_plateau", "patience": 0, "threshold": 0.2, "warmup_steps": 2}
    recipe["validation"] = {"every_steps": 2, "patience": None, "samples": 0}
    recipe["checkpoint"] = {"keep_last": 1}
    file = write_recipe(recipe)

    def start(ranks: int, folder: Path, steps: int, *more: object) -> tuple[int, str]:
        words = ("--recipe", file, "--ds_config", fp32, "--run-dir", folder, "--set", f"stop.max_steps={steps}")
        return server.program(ranks, *words, *more)

    return start


@pytest.fixture(scope="module")
def runs(start, tmp_path_factory):
    """Folders: `quiet`, two ranks all the way; `resized`, 2 -> 1 -> 3 -> 3; `straight`, its last two starts in one."""
    folder = tmp_path_factory.mktemp("runs")
    quiet, resized, straight = folder / "quiet", folder / "resized", folder / "straight"
    said = {"quiet": well(start(2, quiet, STEPS)), "2": well(start(2, resized, 4))}
    before = snapshot(resized)
    said["refused"] = start(1, resized, 6)
    said["untouched"] = snapshot(resized) == before
    said["1"] = well(start(1, resized, 6, "--resize"))
    shutil.copytree(resized, straight)
    said["3"] = well(start(3, resized, 8, "--resize"))
    said["3 again"] = well(start(3, resized, STEPS))
    said["3 straight"] = well(start(3, straight, STEPS, "--resize"))
    return quiet, resized, straight, said


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files but the lock, which names its last holder."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != LOCK_FILE]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def history(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    """What was measured at each step, without what depends on the clock or on how batches are padded."""
    clocks = ("time/", "memory/", "train/tokens_per_second", "valid/seconds", "train/padding_share")
    return {
        (record.kind, record.step): {n: v for n, v in record.values.items() if not n.startswith(clocks)}
        for record in read_history(folder / "metrics.jsonl")
    }


def last(folder: Path) -> Path:
    (found,) = (folder / "checkpoints").glob("step-*")
    return found


def exact_weights(part: Path) -> dict[str, torch.Tensor]:
    """The fp32 weights in the optimizer's shards, as DeepSpeed's own tool puts them together."""
    return get_fp32_state_dict_from_zero_checkpoint(str(part), tag="engine")


def test_without_the_flag_another_size_is_refused_before_anything_is_written(runs):
    code, said = runs[3]["refused"]
    assert code == BAD_INPUT, "starting again cannot help"
    assert "was written by 2 ranks, this run has 1." in said and "--resize" in said and "RESIZE=1" in said
    assert runs[3]["untouched"]


def test_people_are_told_how_a_step_is_shared_out(runs):
    said = runs[3]
    assert "going on with 1 ranks instead of 2: same examples in each step" in said["1"]
    assert "6 examples a step = 3 per rank x 2 accumulation steps x 1 ranks (the recipe: 3 x 1)" in said["1"]
    assert "6 examples a step = 2 per rank x 1 accumulation steps x 3 ranks (the recipe: 3 x 1)" in said["3"]
    assert "instead of" not in said["3 again"] and "2 per rank" in said["3 again"]
    assert "a step =" not in said["quiet"] + said["2"], "nothing to tell"


def test_every_step_has_the_same_losses_gradients_and_decisions(runs):
    quiet, resized = history(runs[0]), history(runs[1])
    assert list(quiet) == list(resized)
    assert [step for kind, step in quiet if kind == "train"] == list(range(1, STEPS + 1))
    for moment, values in quiet.items():
        assert resized[moment] == pytest.approx(values, rel=2e-6, abs=1e-9), moment
        for exact in ("train/lr", "train/examples", "train/epoch", "train/skipped_steps"):
            assert resized[moment].get(exact) == values.get(exact), moment
    assert len({values["train/lr"] for (kind, _), values in quiet.items() if kind == "train"}) > 3, "it has moved"


def test_final_weights_are_equal_within_rounding(runs):
    quiet, resized = (exact_weights(last(folder) / "student") for folder in runs[:2])
    assert quiet.keys() == resized.keys()
    for name, tensor in quiet.items():
        torch.testing.assert_close(resized[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    for part in ("batches", "early_stopping", "keep_best", "learning_rate"):
        one, other = (json.loads((last(folder) / part / "state.json").read_text()) for folder in runs[:2])
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == (value if isinstance(value, str) else pytest.approx(value, rel=2e-6)), (part, key)


def test_after_resizing_a_checkpoint_is_an_ordinary_one_and_resuming_is_exact(runs):
    """Stopped at step 8 and started again by three ranks without the flag, or not stopped: equal in every bit."""
    _, resized, straight, _ = runs
    names = [str(path.relative_to(last(resized))) for path in sorted(last(resized).rglob("*.pt"))]
    assert sum("optim_states" in name for name in names) == 3 and "rng/rank_00002.pt" in names
    for name in names:
        one, other = (torch.load(last(folder) / name, weights_only=False) for folder in (resized, straight))
        assert repr(numbers(one)) == repr(numbers(other)), name
    assert history(resized) == history(straight)


def numbers(value: object) -> object:
    """Tensors as bytes, objects as their fields, containers all the way down."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: numbers(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [numbers(child) for child in value]
    return numbers(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, type) else value


# ---- the engine alone: precisions, optimizers, layouts -------------------------------------------------------------

ALIGNED = {"zero_optimization": {"parameter_alignment": True, "round_robin_gradients": True}}
VARIANTS = {
    "adamw": {"ds_config": "zero2_fp32.json", "optimizer": {"name": "adamw", "weight_decay": 0.1}},
    "sgd": {"ds_config": "zero2_fp32.json", "optimizer": {"name": "sgd"}},
    "momentum": {"ds_config": "zero2_bf16.json", "optimizer": {"name": "sgd", "momentum": 0.9}},
    "amsgrad": {"ds_config": "zero2.json", "optimizer": {"name": "adam", "amsgrad": True}},
    "offloaded": {"ds_config": "zero2_offload.json", "optimizer": {"name": "adamw", "weight_decay": 0.1}},
    "aligned": {"ds_config": "zero2_bf16.json", "optimizer": {"name": "adamw"}, "blocks": ALIGNED},
    "not stepped": {"ds_config": "zero2_bf16.json", "optimizer": {"name": "adamw"}, "steps": 0},
}


@pytest.fixture(scope="module")
def engines(server, tmp_path_factory) -> Path:
    """stage/variant: saved by 2 ranks after two steps; taken up and saved again by 1, then 3, then 2 ranks."""
    folder = tmp_path_factory.mktemp("engines")
    stages = ["two", "one", "three", "two again"]
    for number, (stage, ranks) in enumerate(zip(stages, (2, 1, 3, 2), strict=True)):
        variants = []
        for name, variant in VARIANTS.items():
            (folder / stage / name).mkdir(parents=True)
            before = {"load": str(folder / stages[number - 1] / name), "steps": 0} if number else {"steps": 2}
            variants.append({**before, **variant, "save": str(folder / stage / name)})
        if stage == "two again":  # also the same ranks with another order of parameters
            (folder / "other order").mkdir()
            plain = {"blocks": {"zero_optimization": {"round_robin_gradients": False}}}
            load, save = str(folder / "two" / "offloaded"), str(folder / "other order")
            variants.append({**VARIANTS["offloaded"], **plain, "load": load, "save": save})
        answer = server.play(ranks, engine=variants)
        assert set(answer["codes"]) == {0}, answer["said"][0][-3000:]
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp32_weights_are_carried_over_exactly(engines, variant):
    wanted = exact_weights(engines / "two" / variant)
    for stage in ("one", "three", "two again"):
        found = exact_weights(engines / stage / variant)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()), stage
    if "fp32" not in VARIANTS[variant]["ds_config"] and variant != "not stepped":
        assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in wanted.values()), "not rounded ones"


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back_gives_the_same_shards(engines, variant):
    """Weights, moments, step counts, loss scale and counters of 2 -> 1 -> 3 -> 2 ranks are those that were saved."""
    files = sorted((engines / "two" / variant / "engine").glob("*.pt"))
    assert len(files) == 3
    for file in files:
        one, other = (
            torch.load(path, weights_only=False)
            for path in (file, engines / "two again" / variant / "engine" / file.name)
        )
        assert repr(numbers(one)) == repr(numbers(other)), file.name
    shard = next(file for file in files if "optim_states" in file.name)
    state = torch.load(shard, weights_only=False)["optimizer_state_dict"]["base_optimizer_state"]["state"]
    assert {name for group in state.values() for name in group} == {
        "sgd": set(), "not stepped": set(), "momentum": {"momentum_buffer"},
        "amsgrad": {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    }.get(variant, {"step", "exp_avg", "exp_avg_sq"})  # fmt: skip


def test_another_order_of_parameters_on_the_same_ranks_is_noticed(engines):
    """DeepSpeed would take the shards of `round_robin_gradients` for those without, and train on scrambled weights."""
    wanted, found = exact_weights(engines / "two" / "offloaded"), exact_weights(engines / "other order")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("missing", "has optimizer shards of ranks [1]: they are not all there"),
        ("shorter", "elements of optimizer group 0, not"),
        ("other weights", "the fp32 weights in the shards are not those of the saved student"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(server, engines, tmp_path, harm, said):
    shutil.copytree(engines / "two" / "adamw", tmp_path / "hurt")
    first, second = sorted((tmp_path / "hurt" / "engine").glob("*optim_states.pt"))
    if harm == "missing":
        first.unlink()
    elif harm == "shorter":
        second.unlink()
    else:
        content = torch.load(first, weights_only=False)
        groups = content["optimizer_state_dict"]["single_partition_of_fp32_groups"]
        groups[0] = groups[0].flip(0)
        torch.save(content, first)
    ranks = 2 if harm == "shorter" else 1
    answer = server.play(ranks, engine=[{**VARIANTS["adamw"], "load": str(tmp_path / "hurt")}])
    assert answer["codes"] == [3] * ranks and all(said in of_rank for of_rank in answer["said"]), answer
