"""benchmarks/ablation.py: rows add one part each, and means, spreads and costs are those of the runs."""

from itertools import pairwise

import ablation as bench
import pytest
from runs import DEMO_RECIPE

from distill_engine.recipe.rules import check_recipe, read_recipe

DISTILLED = {"prediction", "hidden", "encoder", "self_attention", "cross_attention", "embedding"}


def weights_of(arm):
    return {name for name, value in read_recipe(DEMO_RECIPE, arm).losses.weights.model_dump().items() if value}


def test_each_row_has_one_part_more():
    arms = bench.arms_of(DEMO_RECIPE)
    assert tuple(arms) == bench.ROWS
    used = [weights_of(arm) for arm in arms.values()]
    assert used[0] == used[1] == {"task"}
    assert [later - earlier for earlier, later in pairwise(used[1:])] == [
        {"prediction"}, {"hidden", "encoder"}, {"self_attention", "cross_attention"}, {"embedding"}, set(),
    ]  # fmt: skip
    assert used[-1] == {"task", *DISTILLED}
    recipes = {name: read_recipe(DEMO_RECIPE, arm) for name, arm in arms.items()}
    assert recipes["nothing"].student.init == "random" and recipes["nothing"].teacher.path is None
    assert recipes["embedding"] == read_recipe(DEMO_RECIPE, [])
    assert recipes["balance"].losses.balance == "gradient_alignment"


def test_rows_of_another_recipe_are_sound(tmp_path, root):
    recipe = tmp_path / "other.yaml"
    recipe.write_text(
        f"name: other\nteacher: {{path: {root}/recipes/demo/teacher}}\nstudent: {{decoder_layers: 2}}\n"
        "losses: {weights: {task: 1, prediction: 1, hidden: 1}}\ndata: {datasets: [{name: demo}]}\n"
        "optimizer: {learning_rate: 0.001}\nstop: {max_steps: 9}\nvalidation: {every_steps: 9}\n"
    )
    arms = bench.arms_of(recipe)
    assert tuple(arms) == ("nothing", "initialisation", "prediction", "hidden", "balance")
    made = {name: read_recipe(recipe, arm) for name, arm in arms.items()}
    assert all(check_recipe(one) == [] for one in made.values())
    alone = made["nothing"].student
    assert (alone.family, alone.width, alone.encoder_layers, alone.decoder_layers) == ("blenderbot", 96, 2, 2)
    assert alone.init == "random" and made["nothing"].data.tokenizer.endswith("recipes/demo/teacher")


def test_what_is_said_of_runs():
    runs = {
        "nothing": [{"valid_ppl": 1.8, "seconds_per_step": 0.2}, {"valid_ppl": 1.7, "seconds_per_step": 0.1}],
        "initialisation": [{"valid_ppl": 1.5, "seconds_per_step": None}],
    }
    found = bench.summarise(runs)
    assert found["seeds"] == 1 and found["seeds_of_each"] == {"nothing": 2, "initialisation": 1}
    assert found["valid_ppl_mean"] == pytest.approx({"nothing": 1.75, "initialisation": 1.5})
    assert found["valid_ppl_spread"] == pytest.approx({"nothing": 0.1, "initialisation": 0.0})
    assert found["seconds_per_step"] == {"nothing": 0.1}
    machine = {"gpus": [], "cpu": "X", "cpu_cores": 2}
    facts = {"recipe": "demo.yaml", "overrides": ["a=1"], "ranks": 1, "machine": machine}
    text = bench.markdown(found | facts)
    assert "| nothing | 1.7500 | 0.1000 | 2 | 0.100 |" in text
    assert "| + initialisation | 1.5000 | 0.0000 | 1 | - |" in text and "`a=1`, 1 rank(s); X, 2 cores" in text
    assert "+ initialisation" in bench.plot(found)
    # rows that were not made are named by the next one
    assert bench.labels(["nothing", "prediction", "embedding"]) == {
        "nothing": "nothing",
        "prediction": "+ initialisation, prediction",
        "embedding": "+ hidden, attention, embedding",
    }
