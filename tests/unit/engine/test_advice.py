"""Advice that fits the case."""

import pytest

from distill_engine.engine.advice import advice


def test_fp16_that_overflows_may_need_another_precision():
    said = advice("float16", [])
    assert "ds_configs/zero2_bf16.json" in said and "learning_rate" in said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_precision_helps_where_nothing_overflows(dtype):
    said = advice(dtype, [])
    assert "bf16" not in said and f"In {dtype}" in said and "learning_rate" in said


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_weights_that_are_not_finite_are_named_whatever_the_precision(dtype):
    said = advice(dtype, [f"w{number}" for number in range(6)])
    assert "w0, w1, w2, w3 and 2 more" in said and "bf16" not in said and "Lower" not in said
