"""The fused attention term: on a GPU if tests run there, else in Triton's interpreter (see tests/conftest.py)."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", reason="Triton is not installed")

import distill_engine.losses.kernels.attention_mse_triton as fused  # noqa: E402
from distill_engine.losses.kernels.attention_mse_triton import attention_mse_sums, pieces  # noqa: E402
from distill_engine.values import QueryKey  # noqa: E402

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("no CUDA device, and Triton was imported without TRITON_INTERPRET=1", allow_module_level=True)
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# how much farther from float64 than whole matrices; the interpreter cuts bfloat16 off where hardware rounds
FARTHER = {HALF: 1.2, BRAIN: 2.5 if DEVICE == "cpu" else 1.2, SINGLE: 2.0}

SHAPES = [  # examples, heads, queries, keys, head sizes; options
    ((2, 1, 7, 9, 80, 40), HALF, {"layers": 2}),
    ((2, 1, 7, 9, 40, 80), BRAIN, {"clamp": 2.0}),
    ((1, 2, 129, 127, 80, 80), HALF, {"clamp": 2.0}),
    ((1, 1, 129, 129, 64, 16), BRAIN, {"causal": True, "clamp": 2.0}),
    ((3, 2, 1, 127, 16, 96), HALF, {"clamp": 1.0, "masks": "right"}),
    ((1, 1, 70, 70, 24, 112), HALF, {"causal": True}),
    ((1, 1, 33, 17, 256, 200), HALF, {}),
    ((2, 1, 7, 33, 80, 80), SINGLE, {"clamp": 2.0}),
    ((1, 2, 33, 33, 200, 256), SINGLE, {"causal": True, "masks": "none"}),
    ((2, 1, 1000, 1000, 16, 16), HALF, {"causal": True, "masks": "right"}),
]


@pytest.mark.parametrize(("shape", "dtype", "options"), SHAPES, ids=[f"{shape}-{dtype}" for shape, dtype, _ in SHAPES])
def test_as_near_to_float64_as_whole_matrices(attention_cases, shape, dtype, options):
    case = attention_cases.make(*shape, dtype=dtype, device=DEVICE, **options)
    attention_cases.check(attention_mse_sums, case, worse_than_eager=FARTHER[dtype])


SIZE = st.integers(1, 40)


@settings(deadline=None, derandomize=True, max_examples=6, database=None)
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2), SIZE, SIZE, SIZE, SIZE),
    causal=st.booleans(), clamp=st.sampled_from([None, 0.7]), dtype=st.sampled_from([HALF, BRAIN, SINGLE]),
    seed=st.integers(0, 99), masks=st.sampled_from(["random", "right", "none"]),
)  # fmt: skip
def test_any_shape(attention_cases, sizes, causal, clamp, dtype, seed, masks):
    sizes = (*sizes[:3], sizes[2], *sizes[4:]) if causal else sizes
    case = attention_cases.make(*sizes, causal=causal, clamp=clamp, dtype=dtype, seed=seed, masks=masks, device=DEVICE)
    attention_cases.check(attention_mse_sums, case, worse_than_eager=4.0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_masked_places_may_hold_anything(attention_cases, bad):
    attention_cases.check_masked_places_may_hold_anything(attention_mse_sums, bad, DEVICE)


@pytest.mark.parametrize(
    "claim",
    ["small_gradients_survive", "clamp_edges", "nan_is_not_hidden", "twice_the_same", "nothing_to_do",
     "recomputed_activations", "no_gradient_when_validating"],
)  # fmt: skip
def test_holds(attention_cases, claim):
    getattr(attention_cases, f"check_{claim}")(attention_mse_sums, DEVICE)


# ---- memory and launches --------------------------------------------------------------------------------------------


class Made(TorchDispatchMode):
    """Notes the size of every tensor that comes into being."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_no_tensor_of_scores_is_made(attention_cases):
    case = attention_cases.make(1, 2, 96, 80, 16, 16, dtype=HALF, device=DEVICE)
    with Made() as made:
        attention_cases.ours(attention_mse_sums, case, torch.ones(1, device=DEVICE))
    assert made.largest == 2 * 96 * 16  # the gradient of the queries


def test_layers_of_one_shape_share_a_launch_wherever_they_lie(attention_cases, monkeypatch):
    """Four layers: two of one head size in different layouts (also inside a joint projection), one compared with
    the same teacher layer as another, one of another size."""
    launches = []
    launch = fused._Group.launch
    monkeypatch.setattr(fused._Group, "launch", lambda *a, **k: launches.append(a[1]) or launch(*a, **k))
    small, large = (attention_cases.make(1, 2, 9, 9, e, 16, dtype=HALF, device=DEVICE, layers=3) for e in (16, 24))
    joint = torch.randn(1, 9, 3, 2, 16, generator=torch.Generator().manual_seed(7)).half().to(DEVICE)
    query, key = (part.transpose(1, 2).requires_grad_() for part in joint.unbind(2)[:2])
    plain = small.students[1]
    students = [
        QueryKey(query, key, 0.25),
        large.students[0],
        QueryKey(*(x.detach().contiguous().requires_grad_() for x in (plain.query, plain.key)), 0.3),
        QueryKey(*(x.detach().mT.contiguous().mT.requires_grad_() for x in (plain.query, plain.key)), 0.3),
    ]
    teachers = [small.teachers[0], large.teachers[1], small.teachers[0], small.teachers[2]]
    case = attention_cases.Case(students, teachers, small.query_mask, small.key_mask, False, 2.0)
    attention_cases.check(attention_mse_sums, case)
    assert len(launches) == 4  # two shapes, forward and backward


def test_offsets_beyond_31_bits():
    """Two examples 2^31 elements apart in reserved memory of which a few pages are used."""
    if DEVICE == "cuda" and torch.cuda.get_device_properties(0).total_memory < 16 * 2**30:
        pytest.skip("needs 5 GB of GPU memory")
    try:
        wide = torch.empty(2**31 + 4096, dtype=HALF, device=DEVICE)
    except RuntimeError:
        pytest.skip("this machine does not reserve 4 GB")
    apart = wide.as_strided((2, 1, 4, 16), (2**31, 16, 16, 1))
    close = torch.randn(2, 1, 4, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE, HALF)
    apart.copy_(close)
    seen = torch.ones(2, 4, dtype=torch.bool, device=DEVICE)
    for one, other in ((apart, close), (close, apart)):  # as the student's and as the teacher's
        found = [
            attention_mse_sums([QueryKey(a, close, 0.3)], [QueryKey(b, close, 0.2)], seen, seen, False, None).item()
            for a, b in ((one, other), (close, close))
        ]
        assert found[0] == found[1] > 0


def test_pieces_cover_a_head_with_little_waste():
    for size in range(1, fused.LARGEST_HEAD + 1):
        main, tail = pieces(size)
        assert size <= main + tail < 2 * size + 32 and all(x & (x - 1) == 0 and x != 8 for x in (main, tail))
    assert [pieces(size) for size in (80, 64, 40, 256)] == [(64, 16), (64, 0), (32, 16), (256, 0)]


def test_what_the_kernel_cannot_do_is_refused(attention_cases):
    case = attention_cases.make(2, 2, 5, 7, 16, 257, device=DEVICE)
    with pytest.raises(ValueError, match="heads of size 257: the kernel takes up to 256"):
        case.call(attention_mse_sums)
    double = attention_cases.make(2, 2, 5, 7, 16, 16, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match=r"of torch\.float64: the kernel reads"):
        double.call(attention_mse_sums)
    pair = case.students[0]
    mixed = QueryKey(pair.query, pair.key.half(), 1.0)
    with pytest.raises(ValueError, match=r"queries of torch\.float32, keys of torch\.float16"):
        attention_mse_sums([mixed], case.students, case.query_mask, case.key_mask, False, None)
    with pytest.raises(ValueError, match="1 student layers, 0 teacher layers"):
        attention_mse_sums([pair], [], case.query_mask, case.key_mask, False, None)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="only the interpreter takes CPU tensors")
def test_a_cpu_is_refused_outside_the_interpreter(attention_cases, monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    pair = attention_cases.make(1, 1, 2, 2, 16, 16).students
    assert fused.unsupported(pair, pair) == "queries and keys on cpu: the kernel needs an NVIDIA GPU"
