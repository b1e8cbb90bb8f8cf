"""A run with a teacher that knows nothing says so: on the screen, in its records, on its report page; its export and
its teacher speak by settings that stand in an old folder's config.json alone."""

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from distill_engine.reports.history import read_run
from distill_engine.reports.run_report import run_report

SETTINGS = {"num_beams": 2, "min_length": 6, "max_length": 14, "no_repeat_ngram_size": 3, "forced_bos_token_id": 5}


def test_two_ranks_with_a_teacher_of_zeros_and_settings_in_config_json(
    program, base_recipe, write_recipe, make_teacher, fp32, tmp_path
):
    teacher, run = make_teacher(tmp_path / "teacher", "bart"), tmp_path / "run"
    weights = {name: torch.zeros_like(value) for name, value in load_file(teacher / "model.safetensors").items()}
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | SETTINGS))
    (teacher / "generation_config.json").unlink()
    recipe = base_recipe(teacher) | {"stop": {"max_steps": 2}, "validation": {"every_steps": 1, "samples": 2}}
    arguments = ("--recipe", write_recipe(recipe), "--run-dir", run, "--ds_config", fp32)
    ended = program.run(*arguments, ranks=2).well()
    assert ended.said.count("WARNING: the teacher predicts validation labels no better than chance") == 2
    assert "teacher's ppl 1024" in ended.said
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = [record["values"] for record in records if record["kind"] == "valid"]
    assert [round(values["valid/teacher_ppl"]) for values in valid] == [config["vocab_size"]] * 2
    warned = [record for record in records if record["kind"] == "event" and "no better than chance" in record["text"]]
    assert [record["step"] for record in warned] == [1, 2]
    page = run_report(read_run(run))
    assert "no better than chance" in page and "teacher_ppl" in page
    theirs = [AutoModelForSeq2SeqLM.from_pretrained(folder).generation_config for folder in (teacher, run / "best")]
    for name, value in SETTINGS.items():
        assert [getattr(one, name) for one in theirs] == [value, value]
