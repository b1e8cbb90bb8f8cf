"""The README of an exported student."""

import yaml

from distill_engine.export.model_card import model_card

RECIPE = "name: demo\nlosses:\n  weights:\n    task: 1.0\n"
METRICS = {"ppl": 12.3456789, "seconds": 4.0, "bst/ppl": 11.0, "total": 3.0, "token_accuracy": 0.5, "ed/ppl": 13.0}
METRICS |= {"sample/seconds": 1.0, "sample/length": 9.0}


def card(**changes) -> str:
    facts = {
        "recipe_yaml": RECIPE, "name": "demo", "family": "blenderbot", "teacher": "facebook/blenderbot-3B",
        "parameters": 1234567, "step": 900, "metrics": METRICS, "machine": {"cpu": "x", "torch": "2"},
    }  # fmt: skip
    return model_card(**(facts | changes))


def test_metadata_block_is_yaml_that_hubs_read():
    front = card().split("---\n")[1]
    assert yaml.safe_load(front) == {
        "library_name": "transformers", "pipeline_tag": "text2text-generation", "tags": ["distillation", "blenderbot"],
    }  # fmt: skip


def test_facts_and_the_whole_recipe_are_there():
    text = card()
    assert "# demo" in text and "student of `facebook/blenderbot-3B`, 1,234,567 parameters" in text
    assert "(step 900).\n" in text and f"```yaml\n{RECIPE}```" in text
    assert "(step 900). Not yet for int8.\n" in card(note="Not yet for int8.")
    assert '"torch": "2"' in text


def test_metrics_in_order_with_tasks_last_and_bookkeeping_left_out():
    rows = [line for line in card().splitlines() if line.startswith("| ") and "metric" not in line]
    assert rows == ["| ppl | 12.346 |", "| token_accuracy | 0.5 |", "| bst/ppl | 11 |", "| ed/ppl | 13 |"]


def test_a_student_without_a_teacher_and_a_recipe_without_its_last_line_end():
    text = card(teacher=None, recipe_yaml="name: x")
    assert "A blenderbot student, 1,234,567" in text and "```yaml\nname: x\n```" in text


def test_braces_in_a_recipe_or_name_are_text():
    text = card(recipe_yaml="a: {b: 1}\n", name="{name}")
    assert "a: {b: 1}" in text and "# {name}" in text
