"""Recipes from YAML: what is read, how mistakes are told, and that a written recipe reads back equal."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.recipe.load import (
    RecipeError,
    load_recipe,
    raise_if_any,
    recipe_difference,
    recipe_digest,
    resolved_yaml,
    without_folders,
)
from distill_engine.recipe.problem import Problem, did_you_mean, shown
from distill_engine.recipe.schema import Recipe
from distill_engine.recipe.yaml_text import dump_yaml, parse_yaml

MINIMAL = """\
name: tiny
data:
  datasets:
    - name: demo
optimizer:
  learning_rate: 1e-4
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def problems_of(folder: Path, text: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return caught.value


# --- reading ---------------------------------------------------------------------------------------------------


def test_a_minimal_recipe_has_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.name == "tiny"
    assert recipe.batch.per_rank == 16
    assert recipe.optimizer.betas == (0.9, 0.999)


@pytest.mark.parametrize(
    "text, value", [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.e-4", 1e-4), ("0.0001", 1e-4), (".5", 0.5), ("1", 1.0)]
)
def test_numbers_are_read_as_people_write_them(tmp_path, text, value):
    recipe = load_recipe(write(tmp_path, MINIMAL.replace("1e-4", text)))
    assert recipe.optimizer.learning_rate == value


def test_a_whole_number_may_be_written_with_an_exponent(tmp_path):
    recipe = load_recipe(write(tmp_path, MINIMAL + "stop: {max_steps: 1e5}\n"))
    assert recipe.stop.max_steps == 100_000


@pytest.mark.parametrize("word", ["no", "on", "010", "12:30", "2024-01-01"])
def test_words_that_yaml_1_1_would_convert_stay_words(tmp_path, word):
    text = MINIMAL.replace("name: demo", f"{{name: demo, label: {word}}}")
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.data.datasets[0].label == word


# --- all problems at once --------------------------------------------------------------------------------------


def test_all_problems_are_reported_at_once_with_lines(tmp_path):
    error = problems_of(
        tmp_path,
        """\
        name: tiny
        seed: true
        losses:
          weights: {hiden: 64, task: -1}
          definition: invarient
        data:
          datasets:
            - {name: demo, wieght: 2}
        optimizer:
          learning_rate: "1e-4"
        """,
    )
    lines = str(error).splitlines()
    assert lines[0].endswith("recipe.yaml: 6 problems")
    assert [problem.path for problem in error.problems] == [
        "seed",
        "losses.weights.hiden",
        "losses.weights.task",
        "losses.definition",
        "data.datasets.0.wieght",
        "optimizer.learning_rate",
    ]
    assert [problem.line for problem in error.problems] == [2, 4, 4, 5, 8, 10]
    text = "\n".join(lines)
    assert "line 4: losses.weights.task is -1. It should be greater than or equal to 0." in text
    assert "line 4: losses.weights.hiden is not a key that a recipe has. The keys here are: task, encoder," in text
    assert "Did you mean hidden?" in text
    assert "losses.definition is 'invarient'. It should be 'parlai' or 'invariant'. Did you mean invariant?" in text
    assert "Did you mean weight?" in text
    assert "optimizer.learning_rate is '1e-4'. It should be a number." in text


def test_a_key_of_another_section_is_named(tmp_path):
    error = problems_of(tmp_path, MINIMAL + "batch: {learning_rate: 1}\n")
    assert "Did you mean optimizer.learning_rate?" in str(error)


def test_a_missing_key_is_named(tmp_path):
    error = problems_of(tmp_path, "name: tiny\n")
    assert [problem.path for problem in error.problems] == ["data", "optimizer"]
    assert "optimizer is missing" in str(error)


def test_the_two_ways_of_a_layer_map_make_one_problem(tmp_path):
    error = problems_of(tmp_path, MINIMAL + "losses: {encoder_layer_map: paralai}\n")
    assert len(error.problems) == 1
    assert "or be a list. Did you mean parlai?" in str(error)


def test_a_wrong_entry_of_a_list_is_named_by_number(tmp_path):
    error = problems_of(tmp_path, MINIMAL + "student: {encoder_init_map: [0, one]}\n")
    assert "student.encoder_init_map.1 is 'one'" in str(error)


@pytest.mark.parametrize("value", ["true", "'16'", "1.5", "[1]", "sixteen"])
def test_wrong_types_are_not_converted(tmp_path, value):
    error = problems_of(tmp_path, MINIMAL + f"batch: {{per_rank: {value}}}\n")
    assert "batch.per_rank is" in str(error)
    assert "whole number" in str(error)


@pytest.mark.parametrize("value", [".inf", ".nan", "-1", "0"])
def test_numbers_out_of_range(tmp_path, value):
    assert "optimizer.learning_rate" in str(problems_of(tmp_path, MINIMAL.replace("1e-4", value)))


def test_an_empty_section_says_so(tmp_path):
    assert "batch is null. It should be a section" in str(problems_of(tmp_path, MINIMAL + "batch:\n"))


def test_a_doubled_key_is_a_problem_beside_the_others(tmp_path):
    error = problems_of(tmp_path, MINIMAL + "seed: 1\nseed: -2\n")
    text = str(error)
    assert "line 8: seed is given twice, first on line 7" in text
    assert "seed is -2" in text


# --- files that are no recipes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n- b\n", "the file holds ['a', 'b']"),
        (b"hello\n", "the file holds 'hello'"),
        (b"name: \xff\n", "line 1: byte 6 is 0xff, which is not UTF-8"),
        (b"name: tiny\n  data: 1\n", "line 2: this is not valid YAML"),
        (b"name: [1\n", "this is not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "this is not valid YAML"),
        (b"name: \x07\n", "this is not valid YAML"),
        (b"name: !!python/object:os.system {}\n", "this is not valid YAML"),
        (b"name: &a [*a]\n", "no plain value"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, content, said):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match="1 problem") as caught:
        load_recipe(path)
    assert said in str(caught.value)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write(tmp_path, MINIMAL, "bb3b_tinybert.yaml")
    with pytest.raises(RecipeError, match=r"no such file. Did you mean bb3b_tinybert.yaml\?"):
        load_recipe(tmp_path / "bb3b_tinybrt.yaml")


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


# --- overrides -------------------------------------------------------------------------------------------------


def test_overrides_replace_and_add(tmp_path):
    overrides = [
        "seed=7",
        "data.datasets.0.weight=2",
        "stop.max_steps=1e2",
        "student.encoder_init_map=[0, 2]",
        "teacher.path=null",
    ]
    recipe = load_recipe(write(tmp_path, MINIMAL), overrides)
    assert recipe.seed == 7
    assert recipe.data.datasets[0].weight == 2
    assert recipe.stop.max_steps == 100
    assert recipe.student.encoder_init_map == [0, 2]


def test_an_override_value_may_hold_an_equals_sign_and_spaces(tmp_path):
    recipe = load_recipe(write(tmp_path, MINIMAL), ['data.delimiter="  = "'])
    assert recipe.data.delimiter == "  = "


@pytest.mark.parametrize(
    "override, said",
    [
        ("seed", "--set 'seed' cannot be read. It should look like section.key=value"),
        ("a..b=1", "cannot be read"),
        ("=1", "cannot be read"),
        ("seed.x=1", "seed.x is set by --set, but seed is 3"),
        (
            "data.datasets.4.weight=1",
            "data.datasets.4 is set by --set, but there is no such entry. data.datasets has 1 entries",
        ),
        ("data.datasets.first.weight=1", "no such entry"),
        ("lossess.weights.task=1", "lossess is not a key that a recipe has (from --set)"),
        ("losses.weights.taks=1", "losses.weights.taks is not a key that a recipe has (from --set)"),
        ("seed=-1", "seed is -1 (from --set)"),
        ("seed=[1", "which is not valid YAML"),
    ],
)
def test_wrong_overrides(tmp_path, override, said):
    assert said in str(problems_of(tmp_path, MINIMAL + "seed: 3\n", override))


def test_wrong_overrides_and_wrong_lines_are_reported_together(tmp_path):
    error = problems_of(tmp_path, MINIMAL + "seed: -1\n", "oops", "batch.per_rank=0")
    assert len(error.problems) == 3


# --- paths -----------------------------------------------------------------------------------------------------


WITH_PATHS = """\
name: tiny
teacher: {path: teacher}
data:
  tokenizer: facebook/blenderbot-3B
  root: /data/of/somebody
  cache_dir: /scratch/somebody
  datasets:
    - {name: parlai_text, train: train.txt, valid: other/valid.txt}
optimizer: {learning_rate: 1e-4}
"""


def test_paths_that_exist_beside_the_recipe_become_absolute(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "train.txt").write_text("text:a\tlabels:b\n")
    recipe = load_recipe(write(tmp_path, WITH_PATHS))
    assert recipe.teacher.path == str(tmp_path.resolve() / "teacher")
    assert recipe.data.datasets[0].train == str(tmp_path.resolve() / "train.txt")
    assert recipe.data.datasets[0].valid == "other/valid.txt"
    assert recipe.data.tokenizer == "facebook/blenderbot-3B"
    assert recipe.data.root == "/data/of/somebody"


def test_a_published_recipe_names_no_folders_of_this_machine(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "train.txt").write_text("text:a\tlabels:b\n")
    published = without_folders(load_recipe(write(tmp_path, WITH_PATHS)))
    assert (published.teacher.path, published.data.tokenizer) == ("teacher", "facebook/blenderbot-3B")
    assert (published.data.root, published.data.cache_dir) == ("somebody", None)
    assert (published.data.datasets[0].train, published.data.datasets[0].valid) == ("train.txt", "other/valid.txt")
    assert str(tmp_path) not in resolved_yaml(published)


def test_paths_of_overrides_stay_relative_to_the_working_directory(tmp_path):
    (tmp_path / "teacher").mkdir()
    recipe = load_recipe(write(tmp_path, MINIMAL), ["teacher.path=teacher"])
    assert recipe.teacher.path == "teacher"


def test_the_same_recipe_read_from_another_directory_is_equal(tmp_path, monkeypatch):
    (tmp_path / "teacher").mkdir()
    write(tmp_path, MINIMAL + "teacher: {path: teacher}\n")
    absolute = load_recipe(tmp_path / "recipe.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("recipe.yaml")) == absolute


# --- writing ---------------------------------------------------------------------------------------------------


def test_a_written_recipe_reads_back_equal(tmp_path):
    text = MINIMAL + 'losses: {clamp: null, encoder_layer_map: [0, 2]}\nlogging: {wandb: {tags: ["1e5", "no", ""]}}\n'
    recipe = load_recipe(write(tmp_path, text), ['data.delimiter="\\n"'])
    written = resolved_yaml(recipe)
    assert load_recipe(write(tmp_path, written, "resolved.yaml")) == recipe
    assert resolved_yaml(load_recipe(tmp_path / "resolved.yaml")) == written


@settings(max_examples=150, deadline=None)
@given(
    delimiter=st.text(max_size=12).filter(lambda text: text.isprintable() or text in ("\n", "\t", " \n ")),
    label=st.sampled_from(
        ["1e5", "010", "null", "~", "true", "yes", "1:30", "<<", "=", "0x10", "a: b", "#", "- x", ".5", "+1", "1_0"]
    ),
    rate=st.floats(min_value=1e-300, max_value=1e300),
    steps=st.integers(min_value=1, max_value=2**60),
    layers=st.lists(st.integers(min_value=0, max_value=40), max_size=40),
)
def test_any_values_survive_yaml(delimiter, label, rate, steps, layers):
    data = {"a": delimiter, "b": {"c": label, "d": rate}, "e": [{"f": steps}], "g": layers, "h": None, "i": True}
    document = parse_yaml(dump_yaml(data))
    assert document.problems == []
    assert document.data == data
    assert isinstance(document.data["b"]["c"], str)


# --- identity --------------------------------------------------------------------------------------------------


def load_with(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(write(folder, MINIMAL), overrides)


@pytest.mark.parametrize(
    "override",
    ["name=other", "stop.max_steps=9", "logging.every_steps=1", "checkpoint.keep_last=5", "validation.patience=1"],
)
def test_restarts_may_change_limits_and_logging(tmp_path, override):
    old, new = load_with(tmp_path), load_with(tmp_path, override)
    difference = recipe_difference(old, new)
    assert difference.mathematics == ()
    assert len(difference.allowed) == 1
    assert recipe_digest(old) == recipe_digest(new)


@pytest.mark.parametrize(
    "override, line",
    [
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate: 0.0001 -> 0.001"),
        ("losses.weights.hidden=64", "losses.weights.hidden: 0.0 -> 64.0"),
        ("validation.metric=loss", "validation.metric: 'ppl' -> 'loss'"),
        ("data.datasets.0.seed=4", "data.datasets.0.seed: 0 -> 4"),
        ("student.encoder_init_map=[1]", "student.encoder_init_map: 'parlai' -> [1]"),
        ("losses.clamp=null", "losses.clamp: 65504.0 -> null"),
    ],
)
def test_other_mathematics_are_told(tmp_path, override, line):
    old, new = load_with(tmp_path), load_with(tmp_path, override)
    assert recipe_difference(old, new).mathematics == (line,)
    assert recipe_digest(old) != recipe_digest(new)


def test_max_steps_is_mathematics_when_the_schedule_ends_there(tmp_path):
    base = ["schedule.name=cosine", "stop.max_steps=10"]
    old, new = load_with(tmp_path, *base), load_with(tmp_path, *base, "stop.max_steps=20")
    assert recipe_difference(old, new).mathematics == ("stop.max_steps: 10 -> 20",)
    assert recipe_digest(old) != recipe_digest(new)
    fixed = [*base, "schedule.total_steps=10"]
    assert not recipe_difference(
        load_with(tmp_path, *fixed), load_with(tmp_path, *fixed, "stop.max_steps=20")
    ).mathematics


def test_an_added_task_is_told_leaf_by_leaf(tmp_path):
    two = "name: demo\n    - {name: demo, label: other}"
    new = load_recipe(write(tmp_path, MINIMAL.replace("name: demo", two)))
    lines = recipe_difference(load_with(tmp_path), new).mathematics
    assert "data.datasets.1.label: (absent) -> 'other'" in lines


def test_equal_recipes_do_not_differ(tmp_path):
    assert not recipe_difference(load_with(tmp_path), load_with(tmp_path))


# --- messages --------------------------------------------------------------------------------------------------


def test_raise_if_any_is_silent_without_problems():
    raise_if_any("recipe.yaml", [])
    with pytest.raises(RecipeError, match=r"recipe\.yaml: 1 problem\n  - line 3: seed is odd\. It is even\. Add 1\."):
        raise_if_any("recipe.yaml", [Problem("seed", "is odd", "It is even", "Add 1.", 3)])


def test_long_values_are_cut():
    assert len(shown("x" * 500)) == 80
    assert (shown(None), shown(True), shown(0), shown("a")) == ("null", "true", "0", "'a'")


def test_nothing_close_gives_no_suggestion():
    assert did_you_mean("zzz", ["task", "hidden"]) == ""
