"""`teachers` and `rollout.source: student` together: two ranks, both teachers in shards, from recipe to checkpoint."""

import json


def test_two_ranks_learn_from_the_mean_of_two_teachers_on_their_own_samples(
    program, base_recipe, make_teacher, write_recipe, fp32, tmp_path
):
    made = base_recipe()
    second = make_teacher(tmp_path / "second", "blenderbot", decoder_layers=2, d_model=16)
    made["teachers"] = [{"path": made.pop("teacher")["path"], "weight": 2.0}, {"path": str(second), "features": True}]
    made["teacher"] = {"allow_noise": True}  # their weights are random
    made["rollout"] = {"source": "student", "share": 0.5, "new_tokens": 6}
    made["losses"] |= {"temperature": 2.0, "divergence": "reverse_kl"}
    made["batch"] = {"per_rank": 2, "accumulation_steps": 2}
    made["validation"], made["stop"] = {"every_steps": 4, "samples": 1}, {"max_steps": 4}
    made["checkpoint"] = {"every_steps": 2}
    folder = tmp_path / "run"
    done = program.run("--recipe", write_recipe(made), "--ds_config", fp32, "--run-dir", folder, ranks=2).well()
    assert "teacher.placement auto: zero3" in done.said
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [one["values"] for one in records if one["kind"] == "train"]
    assert [values["train/rollout/sampled_share"] for values in trained].count(0.5) >= 1
    assert all(values["train/term/prediction/raw"] > 0 for values in trained)
    assert all(values["train/term/decoder_hidden/raw"] > 0 for values in trained), "of the second one's width"
    (validated,) = (one["values"] for one in records if one["kind"] == "valid")
    assert validated["valid/teacher_ppl"] > 1 and validated["valid/term/prediction/raw"] > 0
    checkpoint = folder / "checkpoints" / "step-00000004"
    assert json.loads((checkpoint / "rollout" / "state.json").read_text()) == {"steps": 4}
    assert len(json.loads((checkpoint / "manifest.json").read_text())["identity"]["other_teachers"]) == 16
