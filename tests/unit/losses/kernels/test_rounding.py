"""What the checks of the kernels allow: a tensor core's arithmetic passes at any depth, a faulty product does not."""

import projected_mse
import pytest
import torch
from rounding import TruncatedProduct, cut_off, product_error, truncated_product

HALF = [torch.float16, torch.bfloat16]
FAULTS = [{"bits": 19}, {"left_out": 16}]


def projected(faults):
    """projected_mse_sum with an emulated product."""

    def sums(student, weight, bias, teacher, mask, clamp):
        product = TruncatedProduct.apply(student.flatten(0, 1), weight.mT, faults).view(teacher.shape) + bias.float()
        squared = (product - teacher.float()).square()
        squared = squared if clamp is None else squared.clamp(max=clamp)
        return torch.where(mask[..., None], squared, 0.0).sum() / teacher.shape[-1]

    return sums


def attention(faults):
    """attention_mse_sums with emulated products for one layer, no clamp."""

    def sums(students, teachers, query_mask, key_mask, causal, clamp):
        (student,), (teacher,) = students, teachers
        difference = student.scale * TruncatedProduct.apply(student.query, student.key.mT, faults)
        difference = difference - teacher.scale * truncated_product(teacher.query, teacher.key.mT)
        keep = (query_mask[:, :, None] & key_mask[:, None, :])[:, None]
        return torch.where(keep, difference.square(), 0.0).sum()[None] / student.query.shape[1]

    return sums


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("depth", [80, 320, 1280, 2560])
def test_a_tensor_cores_projection_passes(dtype, depth):
    one = projected_mse.case(24, depth, 64, dtype=dtype)
    projected_mse.check(projected({}), one, None)
    print(f"{depth} deep: off by {sum_error(one):.1e}, allowed are {2e-6 + product_error(dtype, depth):.1e}")


def sum_error(one):
    right, _ = projected_mse.exact(one, None, 1.0)
    return projected_mse.largest_error(projected({})(*one.arguments(), None), right)


def test_its_errors_grow_with_depth():
    """So a bound that does not would refuse it: 2e-6 is what shallow products keep to."""
    one = projected_mse.case(24, 2560, 64, dtype=torch.float16)
    assert sum_error(one) > 2e-6


@pytest.mark.parametrize("depth", [320, 2560])
@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_a_faulty_projection_does_not_pass(faults, depth):
    with pytest.raises(AssertionError):
        projected_mse.check(projected(faults), projected_mse.case(24, depth, 64, dtype=torch.float16), None)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("sizes", [(40, 80), (256, 200)])
def test_a_tensor_cores_attention_passes(attention_cases, dtype, sizes):
    attention_cases.check(attention({}), attention_cases.make(2, 2, 33, 31, *sizes, dtype=dtype))


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_faulty_attention_does_not_pass(attention_cases, faults):
    with pytest.raises(AssertionError):
        attention_cases.check(attention(faults), attention_cases.make(2, 2, 33, 31, 256, 200, dtype=torch.float16))


def test_cutting_off_goes_towards_zero():
    values = torch.tensor([1 + 2.0**-23 + 2.0**-24, -1 - 2.0**-24, 0.0, 3.0], dtype=torch.float64)
    assert cut_off(values).tolist() == [1 + 2.0**-23, -1.0, 0.0, 3.0]
