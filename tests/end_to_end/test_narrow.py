"""A narrower student out of its teacher (`student.init: teacher_width`), as a user starts it."""

import torch
from safetensors.torch import load_file


def test_two_ranks_begin_with_what_one_rank_begins_with_and_resume_without_looking_again(
    program, base_recipe, write_recipe, fp32, tmp_path
):
    """The teacher is whole on one rank and sharded over two; a step that moves nothing shows the beginning."""
    made = base_recipe()
    made["student"] |= {"init": "teacher_width", "importance_examples": 20, "width": 16, "heads": 2, "ffn_width": 16}
    made["losses"]["weights"] |= {"encoder": 1.0, "embedding": 1.0}
    made["optimizer"]["learning_rate"] = 1e-12
    made["validation"] |= {"every_steps": 1, "samples": 0}
    made["stop"]["max_steps"] = 1
    start = ("--recipe", write_recipe(made), "--ds_config", fp32)
    begun = {}
    for ranks in (1, 2):
        done = program.run(*start, "--run-dir", tmp_path / str(ranks), ranks=ranks).well()
        assert "student: 16 of 32 channels, 2 of 4 heads, 16 of 64 neurons" in done.said
        begun[ranks] = load_file(tmp_path / str(ranks) / "best" / "model.safetensors")
    assert begun[1].keys() == begun[2].keys()
    for name, value in begun[1].items():
        torch.testing.assert_close(value, begun[2][name], rtol=1e-5, atol=1e-6)
    again = program.run(*start, "--run-dir", tmp_path / "2", "--set", "stop.max_steps=2", ranks=2).well()
    assert "resumed after step 1" in again.said and "neurons of its teacher" not in again.said
