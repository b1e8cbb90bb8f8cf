"""benchmarks/rollouts.py: rows differ in text and divergence alone, and the table says what the runs measured."""

import json

import rollouts as bench
import yaml
from runs import DEMO_RECIPE

from distill_engine.recipe.rules import check_recipe, read_recipe


def test_rows_are_sound_recipes_that_differ_in_text_alone(tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "1-demo.jsonl").write_text("{}\n")
    entry = {"name": "conversations", "label": "demo_pseudo", "weight": 3.0, "train": str(labels / "1-demo.jsonl")}
    (labels / "entries.yaml").write_text(yaml.safe_dump([entry]))
    recipes = bench.recipes_of(DEMO_RECIPE, ["stop.max_steps=10", "schedule.warmup_steps=2"], tmp_path, make=False)
    assert set(recipes) == {data for data, _ in bench.TEXTS.values()}
    plain = read_recipe(recipes["gold"], bench.overrides_of((), "forward_kl", 1, 64))
    assert plain.stop.max_steps == 10 and plain.validation.generate_examples == 64
    for text, (data, own) in bench.TEXTS.items():
        made = read_recipe(recipes[data], bench.overrides_of(own, "reverse_kl", 2, 0))
        assert check_recipe(made) == [], text
        assert (made.rollout.source == "student") == ("student" in text)
        assert (made.rollout.share == 1.0) == (text == "student")
        weights = {source.title: source.weight for source in made.data.datasets}
        assert ("demo_pseudo" in weights) == ("teacher" in text)
        assert (weights["demo"] == 1.0) == (data != "teacher")
        assert made.losses.weights == plain.losses.weights and made.losses.divergence == "reverse_kl"
    assert "teacher" not in bench.recipes_of(DEMO_RECIPE, [], tmp_path / "new", make=False)


def test_rows_of_an_earlier_call_stay_where_it_asked_the_same(tmp_path):
    facts = {"recipe": "demo.yaml", "overrides": [], "ranks": 1}
    file, runs = tmp_path / "out.json", {"gold, forward_kl": [{"valid_ppl": 1.8}]}
    assert bench.rows_before(file, facts) == ({}, {})
    file.write_text(json.dumps({**facts, "runs": runs, "commits": {"gold, forward_kl": "abc"}}))
    assert bench.rows_before(file, facts) == (runs, {"gold, forward_kl": "abc"})
    assert bench.rows_before(file, facts | {"overrides": ["seed=2"]}) == ({}, {})


def test_what_is_said_of_runs():
    run = {"valid_ppl": 1.8, "seconds_per_step": 0.2, "last_f1": 0.5}
    rows = {"gold, forward_kl": [run, run | {"valid_ppl": 1.6, "seconds_per_step": 0.1}],
            "gold + student, reverse_kl": [run | {"last_f1": 0.75}]}  # fmt: skip
    machine = {"gpus": [], "cpu": "X", "cpu_cores": 2}
    facts = {"recipe": "demo.yaml", "overrides": [], "ranks": 2, "machine": machine}
    head, _, *lines = bench.markdown(bench.summarise(rows) | facts).splitlines()
    assert head == "| text | divergence | best valid ppl | f1 | seeds | s per step |"
    assert lines[0] == "| gold | forward_kl | 1.7000 ± 0.2000 | 0.5000 ± 0.0000 | 2 | 0.100 |"
    assert lines[1] == "| gold + student | reverse_kl | 1.8000 ± 0.0000 | 0.7500 ± 0.0000 | 1 | 0.200 |"
    assert lines[-1].endswith("demo.yaml, 2 rank(s); X, 2 cores.")
