"""benchmarks/parlai_step.py: ParlAI's flags say what our recipe says, products are counted, servers take turns."""

import sys

import parlai_step as bench
import pytest
import torch
from step import recipe_of
from step_presets import PRESETS, WEIGHTS, arithmetic_gflop
from step_server import Products, Server, ServerError, by_turns, times_as_fast
from torch.nn import functional

from distill_engine.arithmetic import products
from distill_engine.interop.parlai.options.command_line import read_command
from distill_engine.interop.parlai.options.render import recipe_yaml
from distill_engine.interop.parlai.options.translate import translate
from distill_engine.recipe.load import load_recipe

SERVER = """
import sys
print('{"ready": true}', flush=True)
for line in sys.stdin:
    if line == "9\\n":
        sys.exit("no more")
    print({list}, flush=True)
"""


def test_parlais_flags_say_what_our_recipe_says(tmp_path):
    preset = PRESETS["parlai_cpu"]
    flags = bench.student_flags(preset, tmp_path)
    flags[flags.index("--task") + 1] = "blended_skill_talk"  # ParlAI's own tests' is not known here
    flags[flags.index("--lr-scheduler") + 1] = "linear"  # nor is a run without a schedule
    command = ["-bs", "1", *flags, "--max-train-steps", "10"]
    (tmp_path / "again.yaml").write_text(recipe_yaml(translate(read_command(command, None), "again")))
    again, ours = load_recipe(tmp_path / "again.yaml"), recipe_of("parlai_cpu", preset)
    same = {"width", "ffn_width", "heads", "encoder_layers", "decoder_layers", "positions", "dropout",
            "attention_dropout", "init", "projections"}  # fmt: skip
    assert again.student.model_dump(include=same) == ours.student.model_dump(include=same)
    assert {term: again.losses.weights[term] for term in WEIGHTS} == WEIGHTS
    assert again.losses.weights["encoder"] == ours.losses.weights["encoder"] == 0
    assert again.batch.per_rank == ours.batch.per_rank == preset.batch
    for field in ("name", "amsgrad", "learning_rate", "clip_norm", "weight_decay"):
        assert getattr(again.optimizer, field) == getattr(ours.optimizer, field)
    assert (again.data.context_tokens, again.data.label_tokens) == (preset.context_tokens, preset.label_tokens)


def test_products_are_counted_forward_and_backward(monkeypatch):
    x, weight = torch.randn(6, 300, requires_grad=True), torch.randn(256, 300, requires_grad=True)
    once = 2 * 6 * 300 * 256 / 1e9
    for by_onednn in (False, True) if products._works() else (False,):
        monkeypatch.setattr(products, "quicker_by_onednn", lambda chosen=by_onednn: chosen)
        with Products() as counted:
            products.linear(x, weight, None).sum().backward()
        assert sum(counted.gflop.values()) == pytest.approx(3 * once)
    with Products() as counted:
        functional.scaled_dot_product_attention(*torch.randn(3, 2, 4, 8, 16).unbind())
    assert sum(counted.gflop.values()) == pytest.approx(4 * 2 * 4 * 8 * 8 * 16 / 1e9)


def server(tmp_path, name, seconds):
    answer = '\'{"seconds": %s, "cpu_seconds": %s}\'' % (seconds, seconds)  # noqa: UP031  # braces are JSON's
    command = [sys.executable, "-S", "-c", SERVER.replace("{list}", answer)]
    return Server(name, command, {}, tmp_path / f"{name}.txt")


def test_servers_take_turns_and_are_compared_round_by_round(tmp_path):
    slow, quick = server(tmp_path, "slow", [4.0, 2.0, 9.0]), server(tmp_path, "quick", [1.0, 2.0, 2.0])
    try:
        assert slow.about() == quick.about() == {"ready": True}
        by_turns([slow, quick], rounds=2, steps=3)
        assert slow.taken["seconds"] == [[4.0, 2.0, 9.0]] * 2 and slow.median("cpu_seconds") == 4.0
        assert times_as_fast(slow, quick, "seconds") == 2.0
        with pytest.raises(ServerError, match=r"slow ended with code 1\nno more"):
            slow.steps(9)
    finally:
        slow.close()
        quick.close()


def test_a_row_of_ours_is_a_real_run(one_line, tmp_path):
    out = tmp_path / "step.json"
    result = one_line("parlai_step.py", "--preset", "tiny", "--rows", "ours_fp32", "--rounds", "1", "--out", str(out))
    row = result["rows"]["ours_fp32"]
    assert row["seconds_per_step"] > 0 and row["cpu_seconds_per_step"] > 0
    assert row["losses"] == sorted(WEIGHTS) and row["teacher_trained"] == 0
    # projections are not in the floor's count twice, nor the scores that terms make again: no less, and little more
    assert 1.0 <= row["products_gflop"] / arithmetic_gflop(PRESETS["tiny"]) < 1.2
    assert out.read_text().strip().startswith("{")


def test_parlai_needs_an_interpreter(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["parlai_step.py"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--parlai-python" in capsys.readouterr().err
