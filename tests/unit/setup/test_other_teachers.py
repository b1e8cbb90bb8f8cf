"""Teachers beside the first: refused, all at once, where averages would mix words that mean something else."""

import json
import re
import shutil

import pytest
from transformers import BlenderbotConfig

from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.families.lookup import family_of
from distill_engine.recipe.compare_rules import features_compare
from distill_engine.recipe.load import load_recipe
from distill_engine.recipe.problem import RecipeError
from distill_engine.recipe.rules import check_recipe
from distill_engine.setup.other_teachers import other_teachers, print_of

SIZES = {"vocab_size": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


@pytest.fixture
def folder(root, tmp_path):
    """Makes a teacher's folder (without weights) with the demo's tokenizer; `swap`: two tokens change their ids."""

    def make(name, swap=False, tokenizer=True, **sizes):
        place = tmp_path / name
        BlenderbotConfig(**{**SIZES, "max_position_embeddings": 128, **sizes}).save_pretrained(place)
        if tokenizer:
            shutil.copytree(root / "recipes" / "demo" / "tokenizer", place, dirs_exist_ok=True)
        if swap:
            file = place / "tokenizer.json"
            content = json.loads(file.read_text())
            table = content["model"]["vocab"]
            one, other = sorted(table, key=table.get)[40:42]
            table[one], table[other] = table[other], table[one]
            file.write_text(json.dumps(content))
        return place

    return make


def read(folder, *paths, weights="{prediction: 1}", **more):
    entries = [f"  - {{path: {path}, weight: {number}}}" for number, path in enumerate(paths, 1)]
    lines = [f"{key}: {value}" for key, value in more.items()]
    file = folder / "recipe.yaml"
    file.write_text(
        "\n".join(["name: several", "teachers:", *entries, *lines, f"losses: {{weights: {weights}}}",
                   "data: {datasets: [{name: demo}]}", "optimizer: {learning_rate: 0.001}",
                   "validation: {every_steps: 5}"])
    )  # fmt: skip
    return load_recipe(file)


def test_the_first_is_the_teacher_and_the_others_stand_beside_it(folder, tmp_path):
    first, second = folder("first"), folder("second", encoder_layers=5)
    recipe = read(tmp_path, "first", "second")
    assert check_recipe(recipe) == [] and recipe.teacher.path == str(first)
    config = json.loads((first / "config.json").read_text())
    (found,) = other_teachers(recipe, config, load_tokenizer(str(first)), "recipe")
    assert (found.folder, found.weight, found.shape.encoder_layers) == (second, 2.0, 5)
    assert print_of(first, config) != print_of(second, found.config)
    again = read(tmp_path, "first", "second", teacher=f"{{path: {first}}}")
    assert check_recipe(again) == []
    (problem,) = check_recipe(read(tmp_path, "first", "second", teacher=f"{{path: {second}}}"))
    assert problem.path == "teacher.path" and "teachers begins with" in problem.what


def test_features_of_another_teacher_are_those_of_other_sizes_where_terms_can_compare_them(folder, tmp_path):
    first, tokens = folder("first", encoder_layers=3, decoder_layers=2), load_tokenizer(str(folder("second")))
    (
        folder("wide", d_model=320, decoder_layers=5),
        folder("flat", encoder_layers=1),
        folder("few", encoder_layers=3, encoder_attention_heads=16),
    )
    config = json.loads((first / "config.json").read_text())

    def said(other, weights, maps="uniform", **student):
        recipe = read(tmp_path, "first", other, weights=weights, student=json.dumps(student))
        recipe.losses.__dict__["encoder_layer_map"] = maps
        recipe.teachers[1].__dict__["features"] = True
        try:
            other_teachers(recipe, config, tokens, "recipe")
        except RecipeError as refused:
            return str(refused)
        return ""

    assert said("wide", "{hidden: 1}", encoder_layers=2) == said("flat", "{prediction: 1}") == ""
    assert re.search(
        r"student.encoder_layers is 3, but the teacher's encoder has 1 layers \(of '.*flat', whose features are "
        r"compared\). A student is at most as deep as its teacher. Set student.encoder_layers: 1 or less",
        said("flat", "{hidden: 1}"),
    )
    assert said("flat", "{hidden: 1}", encoder_layers=1) == said("flat", "{hidden: 1}", [0, 0, 0]) == ""
    assert "encoder_layer_map has 1 entries, but the student has 3 layers" in said("flat", "{hidden: 1}", [0])
    assert "encoder_layer_map is [0, 0, 1], with the entry 1" in said("flat", "{hidden: 1}", [0, 0, 1])
    heads = "losses.weights.self_attention is 1, but the teacher has 16 heads and the student 32"
    assert heads in said("few", "{self_attention: 1}") and said("few", "{hidden: 1}") == ""
    assert heads in said("few", "{self_attention: 1}", heads=32)
    few = family_of(config).shape({**config, "encoder_attention_heads": 16})  # as few as its student's, and its own
    assert list(features_compare(read(tmp_path, "few", "few", weights="{self_attention: 1}"), few, few)) == []


def test_what_cannot_be_averaged_is_refused_with_the_difference(folder, tmp_path):
    first = folder("first")
    folder("words", swap=True), folder("rows", vocab_size=1032), folder("start", decoder_start_token_id=2)
    folder("short", max_position_embeddings=64), folder("mute", tokenizer=False)
    recipe = read(tmp_path, "first", "words", "rows", "start", "short", "mute", tmp_path / "none")
    config = json.loads((first / "config.json").read_text())
    with pytest.raises(RecipeError) as refused:
        other_teachers(recipe, config, load_tokenizer(str(first)), "recipe")
    said = {problem.path: str(problem) for problem in refused.value.problems}
    assert "whose tokenizer has id" in said["teachers.1.path"] and "(4 differences)" in said["teachers.1.path"]
    assert "which has 1032 embedding rows, the first teacher 1024" in said["teachers.2.path"]
    assert "has decoder_start_token_id 2, the first teacher's 1" in said["teachers.3.path"]
    assert "position table has 64 rows" in said["teachers.4.path"]
    assert "whose tokenizer has id null" in said["teachers.5.path"], "one that transformers made of nothing"
    assert "cannot be read" in said["teachers.6.path"]
