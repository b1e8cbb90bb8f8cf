"""benchmarks/balance.py: which runs it makes, which it need not repeat, and what it says of them."""

import json

import balance as bench
import pytest
from runs import DEMO_RECIPE, complete, outcome

from distill_engine.recipe.identity import resolved_yaml
from distill_engine.recipe.rules import read_recipe
from distill_engine.telemetry.jsonl import JsonlSink
from distill_engine.telemetry.sinks import Record

STEPS = "stop.max_steps=80"


@pytest.fixture
def run(tmp_path):
    """Writes what a run of one arm leaves: perplexities by step."""

    def write(arm, ppl):
        folder = tmp_path / arm
        folder.mkdir()
        recipe = read_recipe(DEMO_RECIPE, [STEPS, *bench.ARMS[arm]])
        (folder / "recipe.yaml").write_text(resolved_yaml(recipe))
        sink = JsonlSink(folder / "metrics.jsonl")
        for step, value in ppl.items():
            values = {"train/ppl": value, "train/balance/task": 1.0, "time/seconds_per_step": step / 80}
            sink.write(Record("train", step, step / 2, values))
            sink.write(Record("valid", step, step / 2, {"valid/ppl": value}))
        sink.close("finished")
        return folder

    return write


def test_arms_are_sound_recipes_of_one_seed_and_budget():
    recipes = {name: read_recipe(DEMO_RECIPE, arm) for name, arm in bench.ARMS.items()}
    hand = recipes["hand_tuned"]
    for name, recipe in recipes.items():
        same = recipe.model_copy(update={"losses": hand.losses})
        assert same == hand, "nothing but the losses differs"
        if name != "hand_tuned":
            assert set(recipe.losses.weights.per_term.values()) == {1.0}
            assert recipe.losses.weights.per_term.keys() == hand.losses.weights.per_term.keys()
            assert name == f"ones_{recipe.losses.balance}"


def test_a_run_is_complete_at_its_last_step_with_this_recipe_only(run):
    folder = run("ones_none", {40: 2.0, 80: 1.5})
    assert complete(folder, [STEPS, *bench.ARMS["ones_none"]])
    assert not complete(folder, [STEPS, *bench.ARMS["ones_gradient_norm"]])
    assert not complete(folder, list(bench.ARMS["ones_none"])), "400 steps are asked"
    assert not complete(folder / "absent", [STEPS])
    assert not complete(run("hand_tuned", {40: 2.0}), [STEPS])


def test_committed_numbers(root):
    """From weights of 1, one way of balancing reaches what was tuned by hand, on the mean of three seeds."""
    result = json.loads((root / "benchmarks" / "results" / "balance.json").read_text())
    assert set(result["runs"]) == set(bench.ARMS) and {len(runs) for runs in result["runs"].values()} == {3}
    assert bench.summarise(result["runs"])["reached_by"] == ["ones_gradient_alignment"] == result["reached_by"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--arms", "ones_none"], "--run-dir must say where"), (["--arms", "ones_both"], "no arm ones_both; there are"),
        (["--seeds", "0"], "'0' is no number of runs"), (["--set", "seed=9"], "runs have seeds 1 to --seeds"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_any_run(monkeypatch, capsys, asked, said):
    monkeypatch.setattr("sys.argv", ["balance.py", *asked])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert said in capsys.readouterr().err


def test_the_table_has_the_best_validation_and_says_who_reached_it(run):
    found = {
        "hand_tuned": [outcome(run("hand_tuned", {40: 2.0, 80: 1.5}))] * 2,
        "ones_none": [outcome(run("ones_none", {40: 1.25, 80: 1.75}))] * 2,
        "ones_initial_scale": [outcome(run("ones_initial_scale", {40: 1.8, 80: 1.6}))] * 2,
        "ones_gradient_norm": [
            outcome(run("ones_gradient_norm", {40: 1.8, 80: 1.5})), {"valid_ppl": 1.25, "steps": 80},
        ],
    }  # fmt: skip
    assert found["ones_none"][0] == {
        "valid_ppl": 1.25, "best_step": 40, "last_ppl": 1.75, "steps": 80, "seconds": 40.0, "seconds_per_step": 0.5,
        "factors": {"task": 1.0},
    }  # fmt: skip
    machine = {"cpu": "a processor", "cpu_cores": 2, "gpus": [], "versions": {"torch": "9.9"}}
    result = bench.summarise(found) | {"overrides": [STEPS], "ranks": 2, "machine": machine}
    assert result["reached_by"] == ["ones_gradient_norm"]
    text = bench.markdown(result)
    assert "| of the recipe | `none` | 1.5000 | 1.5000, 1.5000 | 80 |" in text
    assert "| all 1 | `gradient_norm` | 1.3750 | 1.5000, 1.2500 | 80 |" in text
    assert "a processor, 2 cores" in text and f"`{STEPS}`" in text and "torch 9.9" in text
