"""Recipes, data files and DeepSpeed files that cannot be used: exit code 78, every reason in words, no traceback.

A row is: what is wrong -> (how to make it so, what the message must say). They call the program's `main` in this
process, which saves its start.
"""

import json
import os

import pytest

from distill_engine.metrics.named import POOLED, token_metrics
from distill_engine.telemetry.metrics import describe


def setting(path, value):
    return lambda case: case.set(path, value)


RECIPE = {
    "unknown key": (setting("student.encoder_layer", 1), ["student.encoder_layer", "Did you mean encoder_layers?"]),
    "unknown section": (setting("losess.weights.task", 1), ["losess", "Did you mean losses?"]),
    "wrong type": (setting("batch.per_rank", "many"), ["batch.per_rank", "'many'", "whole number"]),
    "number out of range": (setting("optimizer.learning_rate", -1), ["optimizer.learning_rate", "-1"]),
    "unknown task": (setting("data.datasets.0.name", "parlai_txt"), ["parlai_txt", "Did you mean parlai_text?"]),
    "ParlAI task": (
        setting("data.datasets.0", {"name": "blended_skill_talk"}),
        ["data.root", "is null", "blended_skill_talk", "distill data fetch"],
    ),
    "missing data file": (setting("data.datasets.0.train", "nowhere/train.txt"), ["nowhere/train.txt", "not exist"]),
    "empty data file": (lambda case: case.lines(""), ["own.txt", "empty"]),
    "width not divisible by heads": (
        lambda case: (case.set("student.width", 30), case.set("student.heads", 4)),
        ["student.width", "30", "4 heads", "do not divide"],
    ),
    "all weights 0 with a teacher": (
        lambda case: (case.set("losses.weights", {"task": 1}), case.set("student.init", "random")),
        ["teacher.path", "all distillation weights", "are 0"],
    ),
    "all weights 0": (setting("losses.weights", {"task": 0}), ["losses.weights", "all 0", "nothing is learnt"]),
    "no validation split but a metric": (
        setting("data.datasets.0.valid", None),
        ["no `valid` file", "ppl", "validation.metric"],
    ),
    "no validation but a plateau": (
        lambda case: (case.set("validation.every_steps", None), case.set("schedule.name", "reduce_on_plateau")),
        ["schedule.name", "reduce_on_plateau", "no validation ever runs"],
    ),
    "metric nobody measures": (setting("validation.metric", "bleu"), ["validation.metric", "'bleu'"]),
    "contexts beyond the student's positions": (
        lambda case: (case.set("student.positions", 40), case.set("student.init", "random")),
        ["data.context_tokens", "48", "40 positions"],
    ),
    "not YAML": (lambda case: setattr(case, "text", "name: [unclosed\nseed: 1\n"), ["line", "YAML"]),
    "empty recipe": (lambda case: setattr(case, "text", ""), ["the file is empty"]),
    "unreadable --set": (lambda case: case.arguments.extend(["--set", "stop.max_steps"]), ["section.key=value"]),
    "--set of an unknown key": (
        lambda case: case.arguments.extend(["--set", "stop.max_step=3"]),
        ["stop.max_step", "Did you mean max_steps?", "from --set"],
    ),
    "missing recipe": (lambda case: case.arguments.extend(["--recipe", "nowhere.yaml"]), ["nowhere.yaml", "no such"]),
}

TALK = "text:hello\tlabels:hi there\n"
DATA = {
    "line without label": (
        lambda case: case.lines(TALK + "text:how are you\n" + TALK),
        ["own.txt, line 2", "no field `labels`", "how are you"],
    ),
    "line that is no field": (lambda case: case.lines(TALK * 3 + "hello there\n"), ["own.txt, line 4", "key:value"]),
    "line that is not UTF-8": (
        lambda case: (
            case.lines(TALK),
            (case.folder / "own.txt").write_bytes(TALK.encode() + b"text:h\xe4\tlabels:x\n"),
        ),
        ["own.txt, line 2", "not UTF-8"],
    ),
    "line that is no JSON": (
        lambda case: case.lines('{"dialog": []}\n{"dialog": [[\n', kind="conversations"),
        ["own.txt, line 2", "not JSON"],
    ),
    "conversation of another shape": (
        lambda case: case.lines('{"turns": ["hi"]}\n', kind="conversations"),
        ["own.txt, line 1", "`dialog`"],
    ),
    "file without an example": (
        lambda case: case.lines('{"dialog": [[{"id": "a", "text": "hi"}]]}\n', kind="conversations"),
        ["own.txt", "no example", "train"],
    ),
    "file of blank lines": (lambda case: case.lines("\n\n"), ["own.txt", "no example"]),
    "data file that is a folder": (
        lambda case: case.set("data.datasets.0.valid", str(case.folder)),
        ["data.datasets.0.valid", "is a folder"],
    ),
}

DATA |= {
    "data file that is a pipe": (
        lambda case: (os.mkfifo(case.folder / "pipe"), case.set("data.datasets.0.train", str(case.folder / "pipe"))),
        ["data.datasets.0.train", "is a pipe or a device"],
    ),
    "empty validation file": (
        lambda case: case.set("data.datasets.0.valid", case.file("empty.txt", "")),
        ["data.datasets.0.valid", "is empty"],
    ),
}

STAGE2 = {"zero_optimization": {"stage": 2}}
DEEPSPEED = {
    "fp16 and bf16 both on": (
        lambda case: case.ds_config(STAGE2 | {"fp16": {"enabled": True}, "bf16": {"enabled": True}}),
        ["fp16.enabled and bf16.enabled are both true"],
    ),
    "ZeRO stage 3 for the student": (
        lambda case: case.ds_config({"zero_optimization": {"stage": 3}}),
        ["zero_optimization.stage is 3", "ZeRO-2"],
    ),
    "no ZeRO stage": (lambda case: case.ds_config({}), ["zero_optimization.stage is missing"]),
    "ZeRO stage 2 for the teacher": (
        lambda case: case.arguments.extend(["--teacher_ds_config", case.file("t.json", json.dumps(STAGE2))]),
        ["t.json", "zero_optimization.stage is 2", "ZeRO-3"],
    ),
    "batch in both places": (
        lambda case: case.ds_config(STAGE2 | {"train_micro_batch_size_per_gpu": 7}),
        ["train_micro_batch_size_per_gpu is 7", "recipe says 4", "batch.per_rank"],
    ),
    "learning rate in both places": (
        lambda case: case.ds_config(STAGE2 | {"optimizer": {"type": "AdamW", "params": {"lr": 0.5}}}),
        ["optimizer.params.lr is 0.5", "0.01", "optimizer.learning_rate"],
    ),
    "automatic value": (
        lambda case: case.ds_config(STAGE2 | {"gradient_clipping": "auto"}),
        ["gradient_clipping is 'auto'"],
    ),
    "unknown key": (
        lambda case: case.ds_config({"zero_optimisation": {"stage": 2}}),
        ["zero_optimisation", "Did you mean zero_optimization?"],
    ),
    "no JSON": (lambda case: case.ds_config('{"zero_optimization": \n {stage: 2}}'), ["line 2", "not valid JSON"]),
    "missing file": (
        lambda case: case.arguments.extend(["--ds_config", str(case.folder / "nowhere.json")]),
        ["nowhere.json", "cannot be read"],
    ),
}

ROWS = [
    pytest.param(make, says, id=f"{group}: {name}")
    for group, rows in {"recipe": RECIPE, "data": DATA, "deepspeed": DEEPSPEED}.items()
    for name, (make, says) in rows.items()
]


@pytest.mark.parametrize(("make", "says"), ROWS)
def test_is_refused_with_the_reason(refused, make, says):
    refused(make, says)


def test_all_problems_are_reported_at_once(case, call, complaints):
    for path in ("student.heds", "batch.per_rnk", "losses.weights.hiden"):
        case.set(path, 1)
    case.set("optimizer.learning_rate", "fast")
    complaints(*call(), ["4 problems", "heads", "per_rank", "hidden", "optimizer.learning_rate"])


@pytest.mark.parametrize("arguments", [["--reciep", "x"], ["--ds_config"], ["--set"], ["surplus"]])
def test_a_wrong_command_line_is_a_usage_error(case, call, arguments):
    case.arguments += arguments
    code, err = call()
    assert code == 2 and "usage: run.py" in err and "Traceback" not in err


def test_every_metric_that_a_recipe_may_decide_by_is_one_that_is_measured():
    for metric in token_metrics():
        if metric.needs != "divergence":
            describe(f"valid/{metric.name}")
            describe(f"valid/some_task/{metric.name}")
    for name in (POOLED, "total", "term/task/raw"):
        describe(f"valid/{name}")
