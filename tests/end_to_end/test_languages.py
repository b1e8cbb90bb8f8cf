"""A many-to-many teacher whose files do not say what it writes, and a student that does: trained, judged, exported."""

from __future__ import annotations

import json
import random

import tiny_translators
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer


def test_the_target_language_holds_in_training_validation_and_the_export(program, tmp_path, fp32):
    draw, folder, tasks = random.Random(2), tmp_path / "run", {}
    for split, rows in (("train", 16), ("valid", 5)):
        file = tmp_path / f"{split}.jsonl"
        words = ["".join(draw.choices("abcdef", k=draw.randint(2, 6))) for _ in range(rows)]
        file.write_text("\n".join(json.dumps({"source": word, "target": word[::-1]}) for word in words))
        tasks[split] = str(file)
    teacher = tiny_translators.save("nllb", tmp_path / "teacher")
    entry = {"kind": "pairs", "source_language": "fra_Latn", "target_language": "deu_Latn", **tasks}
    recipe = {
        "name": "languages",
        "teacher": {"path": str(teacher), "allow_noise": True},
        "student": {"decoder_layers": 1, "vocabulary": "trimmed"},
        "losses": {"weights": {"task": 1, "prediction": 1, "hidden": 1}},
        "data": {"datasets": [entry], "context_tokens": 16, "label_tokens": 16},
        "batch": {"per_rank": 4},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "validation": {"every_steps": 2, "metric": "chrf", "generate_examples": 4, "samples": 2, "patience": None},
        "logging": {"every_steps": 1, "wandb": {"mode": "disabled"}},
        "stop": {"max_steps": 2},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    program.run("--recipe", file, "--ds_config", fp32, "--run-dir", folder, ranks=2).well()
    student = AutoModelForSeq2SeqLM.from_pretrained(folder / "best")
    tokenizer = AutoTokenizer.from_pretrained(folder / "best")
    german = tokenizer.convert_tokens_to_ids("deu_Latn")
    given = tokenizer("abc", return_tensors="pt")
    assert tokenizer.tgt_lang == "deu_Latn" and given.input_ids[0, 0] == tokenizer.convert_tokens_to_ids("fra_Latn")
    assert student.generate(**given, max_new_tokens=4)[0, :2].tolist() == [tokenizer.eos_token_id, german]
    whole = AutoTokenizer.from_pretrained(teacher)
    assert student.config.vocab_size == len(tokenizer) < len(whole), "of the letters a to f alone"
    assert set(whole.get_vocab()) - set(tokenizer.get_vocab()) == set("ghijklmnopqrstuvwxyz")
    answers = json.loads((folder / "teacher_samples.json").read_text())
    assert len(answers["rows"]) == 2 and all(isinstance(row["teacher"], str) for row in answers["rows"])
