"""A student that is narrower than the teacher whose layers it begins with: what it may be, and what is refused."""

import re

import pytest

from distill_engine.recipe.rules import check_against_teacher, check_recipe
from distill_engine.recipe.schema import Recipe

NARROW = {
    "name": "narrow",
    "teacher": {"path": "a/teacher"},
    "student": {"init": "teacher_width", "decoder_layers": 2, "width": 32, "heads": 2, "ffn_width": 64},
    "losses": {"weights": {"task": 1.0, "hidden": 2.0}},
    "data": {"datasets": [{"name": "demo"}]},
    "optimizer": {"learning_rate": 1e-3},
    "stop": {"max_steps": 10},
    "validation": {"patience": None, "every_steps": 5},
}
BART = {
    "model_type": "bart", "vocab_size": 500, "d_model": 64, "encoder_layers": 4, "decoder_layers": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 96,
    "max_position_embeddings": 200,
}  # fmt: skip
T5 = {"model_type": "t5", "vocab_size": 500, "d_model": 64, "d_kv": 8, "d_ff": 128, "num_layers": 4, "num_heads": 4}
WHISPER = {**BART, "model_type": "whisper", "max_source_positions": 100, "max_target_positions": 200, "num_mel_bins": 8}


def recipe_of(**sections) -> Recipe:
    changed = {key: NARROW[key] | value if key in NARROW else value for key, value in sections.items()}
    return Recipe.model_validate(NARROW | changed)


@pytest.mark.parametrize("config", [BART, T5])
@pytest.mark.parametrize("sizes", [{}, {"width": None, "heads": None}, {"heads": 4}, {"ffn_width": None}])
def test_smaller_sizes_are_sound(config, sizes):
    recipe = recipe_of(student=sizes)
    assert not check_recipe(recipe) and not check_against_teacher(recipe, config)


@pytest.mark.parametrize(
    "changes, config, path, said",
    [
        ({"width": 72, "heads": 3}, BART, "student.width", "is 72, but the teacher has 64"),
        ({"ffn_width": 100}, BART, "student.ffn_width", "is 100, but the teacher has 96"),
        ({"heads": 8}, T5, "student.heads", "is 8, but the teacher has 4"),
        ({"heads": 1}, BART, "student.heads", "of 32 elements, but the teacher's encoder has heads of 16.*: 2 or more"),
        ({"width": None, "heads": None, "ffn_width": None}, BART, "student.init", "no size is smaller.*teacher_layers"),
        ({}, WHISPER, "student.init", "whisper models read no texts.*Set student.init: teacher_layers and fewer"),
        ({"positions": 300}, BART, "student.positions", "student.init: teacher_width copies the table"),
        ({"decoder_init_map": [0, 7]}, BART, "student.decoder_init_map", "with the entry 7"),
    ],
)
def test_what_does_not_fit_into_the_teacher_is_refused(changes, config, path, said):
    (problem,) = check_against_teacher(recipe_of(student=changes), config)
    assert problem.path == path
    assert re.search(said, str(problem)), str(problem)


@pytest.mark.parametrize(
    "changes, path, said",
    [
        ({"teacher": {"path": None}}, "student.init", "is teacher_width, but teacher.path is null"),
        ({"teacher": {"source": "cache", "cache": "x"}}, "student.init", "teacher.source is cache"),
        ({"student": {"copy_final_norms": False}}, "student.copy_final_norms", "All norms are fitted"),
        ({"teachers": [{"path": "a/teacher"}, {"path": "b", "features": True}]}, "teachers.1.features", "the first"),
        ({"student": {"freeze_encoder": True}}, "student.freeze_encoder", "student.init is teacher_width"),
        ({"student": {"init": "random", "importance_examples": 8}}, "student.importance_examples", "init is random"),
    ],
)
def test_what_cannot_be_narrowed_is_refused(changes, path, said):
    problems = [problem for problem in check_recipe(recipe_of(**changes)) if problem.path == path]
    assert len(problems) == 1 and said in str(problems[0])
