"""benchmarks/quantization.py: programs are measured on the same tokens, and losses are against the plain student's."""

import pytest
import quantization as bench
import torch
from runs import DEMO_RECIPE

from distill_engine.evaluate.compare import prepared, split_datasets
from distill_engine.evaluate.set import EvaluationSet
from distill_engine.recipe.quantize_rules import quantized_from
from distill_engine.recipe.rules import check_recipe, read_recipe


def test_both_students_are_of_one_recipe():
    plain, aware = (read_recipe(DEMO_RECIPE, arm) for arm in bench.ARMS.values())
    assert quantized_from(plain) is None and quantized_from(aware) == 360 and not check_recipe(aware)
    assert aware.model_copy(update={"student": plain.student}) == plain


def test_programs_say_the_same_of_the_same_tokens(root, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ctranslate2")
    teacher = root / "recipes" / "demo" / "teacher"
    ready = prepared(
        [str(teacher)], DEMO_RECIPE, ["data.datasets.0.valid_examples=8", "data.datasets.0.train_examples=8"]
    )
    datasets = tuple(split_datasets(ready, "valid").values())
    batch = EvaluationSet(datasets, ready.layout, ready.tokenizer, 4).batch(0)
    with torch.no_grad():
        found = {name: program(batch) for name, program in bench.programs(teacher, tmp_path).items()}
    assert set(found) == {*bench.WHOLE, *bench.WHOLE.values()}
    counted = int(batch.label_mask.sum())
    assert all(len(values) == counted for values in found.values())
    torch.testing.assert_close(found["onnx"], found["torch"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["ctranslate2"], found["torch"], rtol=0, atol=0.05)  # it masks nothing
    for program, whole in bench.WHOLE.items():
        assert 0 < float((found[program] - found[whole]).abs().mean()) < 0.1, program


def test_losses_are_against_the_plain_student_in_full_precision():
    def row(seed, student, torch_ppl, int8):
        ppl = {"torch": torch_ppl, "torch-int8": int8, "imitated": int8 - 0.5}
        return {"seed": seed, "student": student, "ppl": ppl}

    rows = [row(1, "plain", 2.0, 2.5), row(1, "aware", 4.0, 2.1), row(2, "plain", 4.0, 4.4), row(2, "aware", 9.0, 4.0)]
    lost = bench.losses([*rows, row(3, "aware", 1.0, 1.0)])  # a seed whose plain student is not there counts nowhere
    assert lost["plain"]["torch-int8"] == pytest.approx([0.25, 0.1])
    assert lost["aware"]["torch-int8"] == pytest.approx([0.05, 0.0])
    assert lost["aware"]["imitated"] == pytest.approx([-0.2, -0.125])
    assert "| torch-int8 | 3.0000 | 3.4500 | +17.50% | 3.0500 | +2.50% |" in bench.markdown(rows)
    assert "onnx" not in bench.markdown(rows)
