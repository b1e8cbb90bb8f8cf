"""Rules between sections: each is broken once, alone, and says what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from distill_engine.data.kinds.dialogue_source import DIALOGUE_DATASETS
from distill_engine.recipe.rules import check_against_teacher, check_recipe, check_tokenizer
from distill_engine.recipe.schema import Recipe

# A sound recipe without a teacher, as nested values.
ALONE: dict[str, Any] = {
    "name": "alone",
    "student": {
        "family": "blenderbot",
        "init": "random",
        "encoder_layers": 2,
        "decoder_layers": 3,
        "width": 64,
        "ffn_width": 128,
        "heads": 4,
        "positions": 128,
    },
    "data": {"tasks": [{"name": "demo"}], "tokenizer": "a/tokenizer"},
    "optimizer": {"learning_rate": 1e-3},
    "validation": {"every_steps": 100},
}

# A sound recipe that copies a teacher's layers.
DISTILLED: dict[str, Any] = {
    "name": "distilled",
    "teacher": {"path": "a/teacher"},
    "student": {"init": "teacher_layers", "encoder_layers": 2, "decoder_layers": 3},
    "losses": {"weights": {"hidden": 64, "self_attention": 4, "cross_attention": 64, "prediction": 64}},
    "data": {"tasks": [{"name": "demo"}]},
    "optimizer": {"learning_rate": 1e-3},
    "validation": {"every_steps": 100},
}

BLENDERBOT: dict[str, Any] = {
    "model_type": "blenderbot",
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 6,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 8008,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BART = {**BLENDERBOT, "model_type": "bart", "vocab_size": 50265, "pad_token_id": 1, "bos_token_id": 0}


def changed(base: dict[str, Any], **changes: Any) -> Recipe:
    """`base` with sections merged in; a section's value None removes the section."""
    merged = {key: value for key, value in base.items() if changes.get(key, "") is not None}
    for key, value in changes.items():
        if isinstance(value, dict):
            merged[key] = {**merged.get(key, {}), **value}
        elif value is not None:
            merged[key] = value
    return Recipe.model_validate(merged)


CACHED = {"source": "cache", "cache": "d"}
SEVERAL = [{"path": "a/teacher"}, {"path": "b"}]


def lines(problems: list[Any]) -> list[str]:
    return [str(problem) for problem in problems]


@pytest.mark.parametrize("base", [ALONE, DISTILLED])
def test_sound_recipes_have_no_problems(base):
    assert lines(check_recipe(changed(base))) == []


# Each row: base, changes, path of the one problem, what its text says.
BROKEN = [
    (ALONE, {"losses": {"weights": {"task": 0}}}, "losses.weights", "are all 0. Then nothing is learnt"),
    (ALONE, {"losses": {"weights": {"hidden": 64}}}, "losses.weights", r"\(hidden 64\), but teacher.path is null"),
    (ALONE, {"student": {"init": "teacher_layers"}}, "student.init", "Set teacher.path, or student.init: random"),
    (ALONE, {"teacher": {"revision": "abc"}}, "teacher.revision", "but teacher.path is null"),
    (ALONE, {"teacher": {"placement": "node"}}, "teacher.placement", "is 'node', but teacher.path is null"),
    (ALONE, {"teacher": {"window": True}}, "teacher.window", "is true, but teacher.path is null"),
    (ALONE, {"student": {"width": None}}, "student.width", "is missing. Without a teacher"),
    (ALONE, {"student": {"family": None}}, "student.family", "is missing. Without a teacher"),
    (ALONE, {"data": {"tokenizer": None}}, "data.tokenizer", "is missing. Without a teacher"),
    (
        ALONE,
        {"student": {"width": 65}},
        "student.width",
        r"is 65, which 4 heads \(student.heads\) do not divide.*is 64",
    ),
    (ALONE, {"student": {"positions": 100}, "data": {"label_tokens": 50}}, "data.context_tokens", "has 100 positions"),
    (
        ALONE,
        {"student": {"family": "bart"}},
        "data.label_tokens",
        "It needs 129 positions. Set student.positions: 129",
    ),
    (
        ALONE,
        {"student": {"decoder_init_map": [0, 1]}},
        "student.decoder_init_map",
        "has 2 entries, but the student has 3",
    ),
    (
        ALONE,
        {"losses": {"encoder_layer_map": [0, -1]}},
        "losses.encoder_layer_map",
        "with the entry -1. Teacher layers",
    ),
    (ALONE, {"schedule": {"name": "linear"}}, "schedule.name", "needs to know its last step"),
    (
        ALONE,
        {"schedule": {"name": "cosine", "warmup_steps": 9}, "stop": {"max_steps": 9}},
        "schedule.warmup_steps",
        "is 9, but the schedule ends at step 9",
    ),
    (ALONE, {"schedule": {"warmup_start": 0}}, "schedule.warmup_start", "is 0. The first step"),
    (ALONE, {"validation": {"every_steps": None}}, "validation.patience", "is 20, but no validation ever runs"),
    (
        ALONE,
        {"validation": {"every_steps": None, "patience": None, "stop_at": 1.0}},
        "validation.stop_at",
        "or validation.stop_at: null",
    ),
    (
        ALONE,
        {
            "validation": {"every_steps": None, "patience": None},
            "schedule": {"name": "reduce_on_plateau"},
            "stop": {"max_steps": 5},
        },
        "schedule.name",
        "is reduce_on_plateau, but no validation ever runs",
    ),
    (
        ALONE,
        {
            "validation": {"every_steps": None, "patience": None},
            "stop": {"max_steps": 5},
            "checkpoint": {"keep_best": 3},
        },
        "checkpoint.keep_best",
        "is 3, but no validation ever runs",
    ),
    (
        ALONE,
        {"validation": {"save_after_validation": False}, "checkpoint": {"keep_best": 1}},
        "checkpoint.keep_best",
        "save_after_validation is false. Only a checkpoint that is written right after",
    ),
    (ALONE, {"validation": {"direction": "max"}}, "validation.direction", "ppl .* is better when it is minimal"),
    (
        ALONE,
        {"validation": {"metric": "demo/token_accuracy", "direction": "min"}},
        "validation.direction",
        "when it is maximal",
    ),
    (ALONE, {"validation": {"metric": "f1"}}, "validation.metric", "generate_examples is 0"),
    (ALONE, {"validation": {"metric": "repetitoin", "generate_examples": 2}}, "validation.metric", "mean repetition"),
    (
        ALONE,
        {"validation": {"metric": "reply_words", "generate_examples": 2}},
        "validation.direction",
        "is neither better",
    ),
    (ALONE, {"validation": {"patience": None}}, "stop", "Such a run never stops"),
    (ALONE, {"optimizer": {"momentum": 0.9}}, "optimizer.momentum", "is 0.9, but optimizer.name is adamw. Only sgd"),
    (ALONE, {"optimizer": {"name": "sgd", "amsgrad": True}}, "optimizer.amsgrad", "Only adam and adamw"),
    (ALONE, {"data": {"tasks": [{"name": "dmeo"}]}}, "data.tasks.0.name", r"unknown dataset.*Did you mean demo\?"),
    (
        ALONE,
        {"data": {"tasks": [{"name": "demo"}, {"name": "demo"}]}},
        "data.tasks",
        r"has 2 entries \(0, 1\) that are called 'demo'",
    ),
    (
        ALONE,
        {"data": {"tasks": [{"name": "demo", "valid": "x.txt"}]}},
        "data.tasks.0.valid",
        "the demo makes its own dialogues. Remove valid",
    ),
    (
        DISTILLED,
        {"student": {"init": "random"}, "losses": {"weights": {"task": 1}}},
        "teacher.path",
        "all distillation weights .* are 0.*Set teacher.path: null, or give a term a weight",
    ),
    (ALONE, {"batch": {"max_tokens": 255}}, "batch.max_tokens", "one example may take up 256 positions.*4096"),
    (
        ALONE,
        {"student": {"family": "bart", "positions": 129}, "batch": {"max_tokens": 256}},
        "batch.max_tokens",
        "may take up 257 positions",
    ),
    (ALONE, {"batch": {"sort_step": True}}, "batch.sort_step", "is true, but batch.accumulation_steps is 1"),
    (ALONE, {"batch": {"sort_step": True, "max_tokens": 999}}, "batch.sort_step", "and batch.max_tokens is 999"),
    (
        ALONE,
        {"batch": {"sort_step": True, "accumulation_steps": 2}, "losses": {"definition": "parlai"}},
        "batch.sort_step",
        "is true, but losses.definition is parlai",
    ),
    (ALONE, {"batch": {"length_window": 64}}, "batch.length_window", "is 64, but batch.max_tokens is null"),
    (ALONE, {"data": {"temperature": 2.0}}, "data.temperature", "is 2, but data.tasks has one entry"),
    (DISTILLED, {"teacher": {"source": "cache"}}, "teacher.source", "is cache, but teacher.cache is null"),
    (DISTILLED, {"teacher": {"cache": "d"}}, "teacher.cache", "is 'd', but teacher.source is live"),
    (
        DISTILLED,
        {"teacher": {"overlap": True, "placement": "zero3"}},
        "teacher.placement",
        "is zero3, but teacher.overlap is true",
    ),
    (
        DISTILLED,
        {"teacher": {"overlap": True, "window": True}},
        "teacher.window",
        "is true, but teacher.overlap is true",
    ),
    (
        DISTILLED,
        {"teacher": {"overlap": True}, "rollout": {"source": "student"}},
        "rollout.source",
        "is student, but teacher.overlap is true.*Set rollout.source: gold, or teacher.overlap: false",
    ),
    (DISTILLED, {"rollout": {"share": 0.25}}, "rollout.share", "is 0.25, but rollout.source is gold"),
    (DISTILLED, {"rollout": {"source": "student", "new_tokens": 129}}, "rollout.new_tokens", "is 129, .* 128 or less"),
    (
        DISTILLED,
        {"rollout": {"source": "student"}, "losses": {"weights": {"task": 1}}},
        "rollout.source",
        "is student, but no term that compares with a teacher has a weight",
    ),
    (
        DISTILLED,
        {"rollout": {"source": "student"}, "teacher": CACHED},
        "rollout.source",
        "is student, but teacher.source is cache",
    ),
    (DISTILLED, {"teachers": [{"path": "b"}]}, "teacher.path", "is 'a/teacher', but teachers begins with 'b'"),
    (
        DISTILLED,
        {"teachers": [{**one, "features": True} for one in SEVERAL]},
        "teachers.1.features",
        "is true, but so is teachers.0.features",
    ),
    (
        DISTILLED,
        {"teachers": SEVERAL, "losses": {**DISTILLED["losses"], "kernels": {"prediction": "fused"}}},
        "losses.kernels.prediction",
        "is fused, but there are 2 teachers",
    ),
]


def test_some_tokens_of_a_cache_are_not_all_logits_nor_their_factors(tmp_path):
    teacher = {**CACHED, "cache": str(tmp_path)}
    fused = {**DISTILLED["losses"], "kernels": {"prediction": "fused"}}
    squared = {**DISTILLED["losses"], "divergence": "logit_mse"}
    some, logits, factors = ({"k": k, "head": head} for k, head in ((64, False), (None, False), (None, True)))
    for losses, form, said in (
        (fused, None, ""), (squared, None, ""), (fused, factors, ""), (squared, factors, ""), (squared, logits, ""),
        (fused, some, "losses.kernels.prediction is fused, but .* keeps the 64 most probable tokens"),
        (fused, logits, "losses.kernels.prediction is fused, but .* keeps logits themselves"),
        (squared, some, "teacher.cache is .*, which keeps 64 tokens of each position, but .* is logit_mse"),
        (DISTILLED["losses"], some, ""),
    ):  # fmt: skip
        if form is not None:
            (tmp_path / "manifest.json").write_text(json.dumps({"form": form}))
        problems = check_recipe(changed(DISTILLED, teacher=teacher, losses=losses))
        assert [bool(re.search(said, str(one))) for one in problems] == [True] * bool(said), lines(problems)


@pytest.mark.parametrize("base, changes, path, said", BROKEN, ids=[f"{row[2]}-{i}" for i, row in enumerate(BROKEN)])
def test_each_rule_alone(base, changes, path, said):
    problems = check_recipe(changed(base, **changes))
    assert [problem.path for problem in problems] == [path], lines(problems)
    assert re.search(said, str(problems[0])), str(problems[0])


def test_a_pruned_student_may_be_fine_tuned_with_all_distillation_weights_0():
    assert lines(check_recipe(changed(DISTILLED, losses={"weights": {"task": 1}}))) == []


@pytest.mark.parametrize(
    "dataset", ["blended_skill_talk", "wizard_of_wikipedia", "convai2", "convai2:normalized", "empathetic_dialogues"]
)
def test_dialogue_tasks_need_their_folder_in_the_root(dataset, tmp_path):
    def problem(root: str | None) -> str:
        (problem,) = check_recipe(changed(ALONE, data={"tasks": [{"name": dataset}], "root": root}))
        assert problem.path == "data.root"
        return str(problem)

    fetched = f"distill data fetch {dataset.partition(':')[0]} --root"
    assert f"is null, but data.tasks has {dataset}" in problem(None) and fetched in problem(None)
    assert "which is no folder" in problem(str(tmp_path / "absent"))
    assert "there is no folder" in problem(str(tmp_path)) and fetched in problem(str(tmp_path))
    (tmp_path / DIALOGUE_DATASETS[dataset]).mkdir()
    assert lines(check_recipe(changed(ALONE, data={"tasks": [{"name": dataset}], "root": str(tmp_path)}))) == []


def test_every_dialogue_task_that_misses_is_told_at_once(tmp_path):
    datasets = [{"name": "convai2"}, {"name": "convai2:normalized"}, {"name": "wizard_of_wikipedia"}]
    said = lines(check_recipe(changed(ALONE, data={"tasks": datasets, "root": str(tmp_path)})))
    assert ["ConvAI2" in said[0], "wizard_of_wikipedia" in said[1], len(said)] == [True, True, 2]


def test_options_of_one_reader_are_refused_elsewhere(tmp_path):
    (tmp_path / "ConvAI2").mkdir()
    datasets = [{"name": "convai2", "topic_split": True, "normalized": False, "valid": "x.txt"}]
    problems = check_recipe(changed(ALONE, data={"tasks": datasets, "root": str(tmp_path)}))
    assert [problem.path.rsplit(".")[-1] for problem in problems] == ["valid", "topic_split", "normalized"]


def test_a_saved_dataset_may_be_a_folder(tmp_path):
    datasets = [{"name": "hf_dataset", "train": str(tmp_path), "valid": str(tmp_path)}]
    assert lines(check_recipe(changed(ALONE, data={"tasks": datasets}))) == []


def test_all_problems_come_at_once():
    recipe = changed(ALONE, optimizer={"momentum": 0.9}, student={"width": 65}, data={"tasks": [{"name": "x"}]})
    assert {problem.path for problem in check_recipe(recipe)} == {
        "optimizer.momentum",
        "student.width",
        "data.tasks.0.name",
    }


# --- files -----------------------------------------------------------------------------------------------------


def file_recipe(**files: str | None) -> Recipe:
    return changed(ALONE, data={"tasks": [{"name": "parlai_text", **files}]})


def full(path: Path) -> str:
    path.write_text("text:a\tlabels:b\n", encoding="utf-8")
    return str(path)


def test_file_tasks_with_their_files_are_sound(tmp_path):
    recipe = file_recipe(train=full(tmp_path / "train.txt"), valid=full(tmp_path / "valid.txt"))
    assert lines(check_recipe(recipe)) == []


def test_a_file_task_needs_a_training_file(tmp_path):
    (problem,) = check_recipe(file_recipe(valid=full(tmp_path / "valid.txt")))
    assert str(problem).startswith("data.tasks.0.train is missing. A parlai_text dataset reads files.")


def test_files_that_cannot_be_read_are_told_together(tmp_path):
    full(tmp_path / "train.txt")
    (tmp_path / "empty.txt").write_text("")
    recipe = file_recipe(train=str(tmp_path / "trian.txt"), valid=str(tmp_path / "empty.txt"), test=str(tmp_path))
    missing, empty, folder = lines(check_recipe(recipe))
    assert "trian.txt', which does not exist" in missing and "Did you mean train.txt?" in missing
    assert "empty.txt', which is empty" in empty
    assert "which is a folder" in folder


def test_a_metric_without_a_validation_split_is_an_error(tmp_path):
    (problem,) = check_recipe(file_recipe(train=full(tmp_path / "train.txt")))
    assert problem.path == "data.tasks"
    assert "(validation.every_steps) and decide by ppl (validation.metric)" in str(problem)


def test_one_task_with_a_validation_split_is_enough(tmp_path):
    datasets = [{"name": "conversations", "train": full(tmp_path / "train.jsonl")}, {"name": "demo"}]
    assert lines(check_recipe(changed(ALONE, data={"tasks": datasets}))) == []


# --- against the teacher ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [BLENDERBOT, BART])
def test_a_fitting_teacher_has_no_problems(config):
    recipe = changed(DISTILLED, data={"label_tokens": 127})
    assert lines(check_against_teacher(recipe, config)) == []


RANDOM = {"init": "random", "width": 32, "ffn_width": 64}

# Each row: changes to DISTILLED, changes to the config, path of the one problem, what its text says.
MISFITS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"student": {"family": "bart"}}, {}, "student.family", "is bart, but the teacher is a blenderbot model"),
    ({"student": {"decoder_layers": 7}}, {}, "student.decoder_layers", "is 7, but the teacher's decoder has 6 layers"),
    ({"student": {**RANDOM, "encoder_layers": 3}}, {}, "student.encoder_layers", "is at most as deep as its teacher"),
    ({"student": {"decoder_init_map": [0, 3, 6]}}, {}, "student.decoder_init_map", "with the entry 6.*numbered 0 to 5"),
    ({"losses": {"decoder_layer_map": [0, 3, 6]}}, {}, "losses.decoder_layer_map", "with the entry 6"),
    (
        {"student": {"encoder_layers": None, "encoder_init_map": [0]}},
        {},
        "student.encoder_init_map",
        "so the student has 2. Set student.encoder_layers: 1",
    ),
    (
        {"student": {"width": 32}},
        {},
        "student.width",
        "is 32, but the teacher has 64, and student.init is teacher_layers",
    ),
    ({"student": {"ffn_width": 64}}, {}, "student.ffn_width", "is 64, but the teacher has 128"),
    ({"student": {**RANDOM, "width": 30}}, {}, "student.width", "encoder of width 30 with 4 heads"),
    ({"student": {"positions": 256}}, {}, "student.positions", "position table has 128 rows"),
    (
        {"data": {"context_tokens": 129}},
        {},
        "data.context_tokens",
        "is 129, but the teacher's position table has 128 rows",
    ),
    ({}, {"model_type": "bart"}, "data.label_tokens", "A bart model needs 129 for them. Set data.label_tokens: 127"),
    (
        {"data": {"label_tokens": 127}, "batch": {"max_tokens": 256, "pad_to_multiple_of": 8}},
        {"model_type": "bart"},
        "batch.max_tokens",
        "may take up 257 positions.*both rounded up to batch.pad_to_multiple_of 8, and 1 before it",
    ),
    ({}, {"model_type": "gpt2"}, "teacher.path", "has model_type 'gpt2'. Teachers can be: blenderbot"),
    ({}, {"d_model": None}, "teacher.path", "has a config.json with d_model null"),
]


@pytest.mark.parametrize("changes, config, path, said", MISFITS, ids=[f"{row[2]}-{i}" for i, row in enumerate(MISFITS)])
def test_each_misfit_alone(changes, config, path, said):
    problems = check_against_teacher(changed(DISTILLED, **changes), {**BLENDERBOT, **config})
    assert [problem.path for problem in problems] == [path], lines(problems)
    assert re.search(said, str(problems[0])), str(problems[0])


def test_head_counts_that_differ_have_the_exact_message():
    recipe = changed(DISTILLED, student={**RANDOM, "heads": 16}, losses={"weights": {"self_attention": 4}})
    config = {**BLENDERBOT, "encoder_attention_heads": 32, "decoder_attention_heads": 32}
    (problem,) = check_against_teacher(recipe, config)
    assert str(problem) == (
        "losses.weights.self_attention is 4, but the teacher has 32 heads and the student 16 (student.heads). "
        "Attention matrices can only be compared head by head. "
        "Set student.heads: 32, or losses.weights.self_attention: 0."
    )


def test_head_counts_may_differ_without_attention_terms():
    recipe = changed(DISTILLED, student={**RANDOM, "heads": 2}, losses={"weights": {"hidden": 64}})
    assert lines(check_against_teacher(recipe, BLENDERBOT)) == []


def test_each_attention_term_that_cannot_be_compared_is_told():
    recipe = changed(DISTILLED, student={**RANDOM, "heads": 2})
    paths = [problem.path for problem in check_against_teacher(recipe, BLENDERBOT)]
    assert paths == ["losses.weights.self_attention", "losses.weights.cross_attention"]


def test_a_deeper_student_is_fine_where_no_map_is_used():
    recipe = changed(DISTILLED, student={**RANDOM, "decoder_layers": 9}, losses={"weights": {"prediction": 1}})
    assert lines(check_against_teacher(recipe, BLENDERBOT)) == []


def test_a_deeper_student_may_list_its_layers():
    maps = {"decoder_layer_map": [0, 0, 1, 1, 2, 2, 5]}
    recipe = changed(DISTILLED, student={**RANDOM, "decoder_layers": 7}, losses={**DISTILLED["losses"], **maps})
    assert lines(check_against_teacher(recipe, BLENDERBOT)) == []


def test_an_incomplete_config_tells_every_missing_number():
    config = {"model_type": "bart"}
    assert len(check_against_teacher(changed(DISTILLED), config)) == 9


# --- tokenizer -------------------------------------------------------------------------------------------------

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def test_a_fitting_tokenizer_has_no_problems():
    assert check_tokenizer(8008, SPECIAL, 8008, BLENDERBOT) == []
    assert check_tokenizer(8000, SPECIAL, 8008, BLENDERBOT) == []


@pytest.mark.parametrize(
    "size, said", [(8009, "gives ids up to 8008, but the teacher has 8008 embedding rows"), (5000, "knows 5000 ids")]
)
def test_another_vocabulary(size, said):
    (problem,) = check_tokenizer(size, SPECIAL, 8008, BLENDERBOT)
    assert said in str(problem)


def test_other_special_tokens():
    problems = lines(check_tokenizer(8008, {**SPECIAL, "pad_token_id": 1, "bos_token_id": None}, 8008, BLENDERBOT))
    assert problems[0].startswith("data.tokenizer has pad_token_id 1, but the teacher's config.json says 0.")
    assert "bos_token_id null" in problems[1]


def test_special_tokens_that_the_config_does_not_name_are_free():
    assert check_tokenizer(8008, SPECIAL, 8008, {"bos_token_id": None}) == []
