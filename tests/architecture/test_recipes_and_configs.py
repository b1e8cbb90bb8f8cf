"""Every recipe and every DeepSpeed JSON that is shipped can be used as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distill_engine import registry
from distill_engine.engine.ds_config import load_ds_config, precision_of, student_config, teacher_config
from distill_engine.families.lookup import family_named
from distill_engine.recipe.load import load_recipe, recipe_digest, resolved_yaml
from distill_engine.recipe.rules import check_against_teacher, check_recipe
from distill_engine.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FOR_FILES = ["bart_cnn", "flan_t5_xl", "marian_opus", "mbart50", "nllb_1.3b", "whisper_large_v3"]  # that a user names
PARLAI_RECIPES = [path for path in RECIPES if path.stem not in ("demo", *FOR_FILES)]
STUDENT_CONFIGS = sorted((ROOT / "ds_configs").glob("zero2*.json"))
TEACHER_CONFIGS = sorted((ROOT / "ds_configs").glob("teacher*.json"))
PARLAI_TASKS = ["blended_skill_talk", "wizard_of_wikipedia", "convai2:normalized", "empathetic_dialogues"]

# The numbers of the published config.json files.
TEACHERS = {
    path: {"model_type": family, **config}
    for family in registry.names("families")
    for path, config in family_named(family).known.items()
}


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_there_is_something_to_check():
    shipped = {"bart_distilbert.yaml", "bart_tinybert.yaml", "bb3b_distilbert.yaml", "bb3b_tinybert.yaml"}
    assert shipped | {f"{name}.yaml" for name in FOR_FILES} <= set(names(RECIPES))
    assert names(STUDENT_CONFIGS) == ["zero2.json", "zero2_bf16.json", "zero2_fp32.json", "zero2_offload.json"]
    assert names(TEACHER_CONFIGS) == ["teacher_zero3.json"]


@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_every_recipe_is_sound(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    downloaded = any(task.name in PARLAI_TASKS for task in recipe.data.datasets)
    problems = check_recipe(recipe)
    # where the downloads or the user's files lie is the one thing that a shipped recipe cannot know
    missing = ["data.datasets.0.train", "data.datasets"] if path.stem in FOR_FILES else ["data.root"] * downloaded
    assert [problem.path for problem in problems] == missing, "\n".join(map(str, problems))
    assert path.stem in FOR_FILES or all("is null" in str(problem) for problem in problems)


@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_every_recipe_is_sound_with_the_tasks_at_hand(path, tmp_path):
    root, file = ROOT / "tests" / "fixtures" / "taskdata" / "raw", tmp_path / "rows.jsonl"
    file.write_text("{}")  # checks without reading
    overrides = [] if path.stem == "demo" else [f"data.root={root}"]
    if path.stem in FOR_FILES:
        overrides = [f"data.datasets.0.{split}={file}" for split in ("train", "valid")]
    assert check_recipe(load_recipe(path, overrides)) == []


@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_every_recipe_survives_being_written(path, tmp_path):
    recipe = load_recipe(path)
    copy = tmp_path / "recipe.yaml"
    copy.write_text(resolved_yaml(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe
    assert recipe_digest(load_recipe(copy)) == recipe_digest(recipe)


@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_every_recipe_fits_its_published_teacher(path):
    recipe = load_recipe(path)
    assert path.stem not in FOR_FILES or recipe.teacher.path in TEACHERS
    if recipe.teacher.path in TEACHERS:
        problems = check_against_teacher(recipe, TEACHERS[recipe.teacher.path])
        assert problems == [], "\n".join(map(str, problems))


def bb3b_tinybert() -> Recipe:
    return load_recipe(ROOT / "recipes" / "bb3b_tinybert.yaml")


def test_the_sample_command_is_what_the_recipe_says():
    recipe = bb3b_tinybert()
    assert (recipe.student.width, recipe.student.ffn_width) == (2560, 10240)
    assert (recipe.student.encoder_layers, recipe.student.decoder_layers) == (2, 9)
    assert (recipe.student.init, recipe.student.projections) == ("random", "always")
    assert {name: weight for name, weight in recipe.losses.weights.root.items() if weight} == {
        "task": 1,
        "embedding": 4,
        "hidden": 64,
        "self_attention": 4,
        "cross_attention": 64,
        "prediction": 64,
    }
    assert [task.name for task in recipe.data.datasets] == PARLAI_TASKS
    assert (recipe.batch.per_rank, recipe.optimizer.learning_rate) == (16, 1e-4)
    assert recipe.schedule.name == "reduce_on_plateau"
    validation = recipe.validation
    assert (validation.every_seconds, validation.every_steps, validation.every_epochs) == (900, None, None)
    assert (validation.metric, validation.direction, validation.patience) == ("ppl", "min", 20)
    assert validation.save_after_validation
    assert recipe.stop.max_steps is recipe.stop.max_epochs is recipe.stop.max_seconds is None


@pytest.mark.parametrize("path", PARLAI_RECIPES, ids=names(PARLAI_RECIPES))
def test_task_weights_are_parlais_of_episodes(path):
    data = load_recipe(path).data
    assert [task.name for task in data.datasets] == PARLAI_TASKS
    assert [task.weight for task in data.datasets] == [1, 3, 3, 3]
    assert (data.weights_mean, data.temperature) == ("episodes", 1.0)


@pytest.mark.parametrize("path", STUDENT_CONFIGS, ids=names(STUDENT_CONFIGS))
@pytest.mark.parametrize("fp16_supported", [True, False])
def test_every_student_config_resolves_and_deepspeed_takes_it(path, fp16_supported):
    from deepspeed.runtime.config import DeepSpeedConfig

    final, notes = student_config(
        load_ds_config(path),
        batch_per_rank=4,
        accumulation_steps=2,
        world_size=1,
        clip_norm=0.1,
        fp16_supported=fp16_supported,
        bf16_supported=True,
    )
    parsed = DeepSpeedConfig(json.loads(json.dumps(final)))
    assert parsed.zero_optimization_stage == 2
    assert parsed.gradient_allreduce_op == "sum"
    assert parsed.gradient_clipping == 0.1
    assert parsed.train_batch_size == 8
    assert parsed.float16_config.enabled == (precision_of(final) == "fp16")
    assert parsed.bfloat16_config.enabled == (precision_of(final) == "bf16")
    asks_fp16 = "fp16" in json.loads(path.read_text())
    assert len(notes) == (1 if asks_fp16 and not fp16_supported else 0)


@pytest.mark.parametrize("path", TEACHER_CONFIGS, ids=names(TEACHER_CONFIGS))
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_every_teacher_config_resolves_and_deepspeed_takes_it(path, dtype):
    from deepspeed.runtime.config import DeepSpeedConfig

    final = teacher_config(load_ds_config(path), dtype=dtype, batch_per_rank=4, world_size=1)
    parsed = DeepSpeedConfig(json.loads(json.dumps(final)))
    assert parsed.zero_optimization_stage == 3
    assert (parsed.float16_config.enabled, parsed.bfloat16_config.enabled) == (dtype == "fp16", dtype == "bf16")


def test_the_readme_of_ds_configs_names_every_key_and_file():
    text = (ROOT / "ds_configs" / "README.md").read_text(encoding="utf-8")
    for path in [*STUDENT_CONFIGS, *TEACHER_CONFIGS]:
        assert f"`{path.name}`" in text
        for key in re.findall(r'"(\w+)":', path.read_text(encoding="utf-8")):
            assert re.search(rf"\b{key}\b", text), f"{path.name}: {key} is not explained in ds_configs/README.md"


SAMPLE_FLAGS = """
    --allow-missing-init-opts --init-model --init-opt --model --teacher-model --batchsize --embedding-size
    --ffn-size --fp16 --gpu --learningrate --lr-scheduler --max-lr-steps --max-train-time --model-parallel
    --save-after-valid --skip-generation --task -veps -vmm -vmt -vp -vtim --n-encoder-layers --n-decoder-layers
    --embedding-loss-coeff --hidden-loss-coeff --self-attn-loss-coeff --enc-dec-attn-loss-coeff
    --encoder-loss-coeff --pred-loss-coeff --task-loss-coeff --model-file
"""


@pytest.mark.parametrize("flag", SAMPLE_FLAGS.split())
def test_every_flag_of_the_sample_command_has_its_row(flag):
    text = (ROOT / "docs" / "parlai.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{flag}[ `]", text, re.MULTILINE), f"docs/parlai.md has no row for {flag}"
