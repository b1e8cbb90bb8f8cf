"""Attention scores in blocks: the numbers of whole matrices without the matrices."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import distill_engine.losses.kernels.attention_mse_chunked as chunked
from distill_engine.losses.kernels.attention_mse_chunked import attention_mse_sums

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [  # examples, heads, queries, keys, head sizes, options
    ((2, 2, 7, 9, 80, 40), {"layers": 2}),
    ((1, 3, 129, 129, 80, 80), {"causal": True, "clamp": 2.0}),
    ((3, 1, 1, 127, 16, 96), {"clamp": 1.0, "masks": "right"}),
    ((1, 2, 1000, 300, 64, 32), {"masks": "none"}),
    ((1, 1, 1000, 1000, 256, 200), {"causal": True}),
]
SIZE = st.integers(1, 9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "options"), SHAPES, ids=[str(shape) for shape, _ in SHAPES])
def test_as_near_to_float64_as_whole_matrices(attention_cases, shape, options, dtype):
    attention_cases.check(attention_mse_sums, attention_cases.make(*shape, dtype=dtype, **options))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), SIZE, SIZE, SIZE, SIZE),
    causal=st.booleans(), clamp=st.sampled_from([None, 0.7]), block=st.integers(1, 400), rows=st.integers(1, 5),
    examples=st.integers(1, 3), seed=st.integers(0, 99), masks=st.sampled_from(["random", "right", "none"]),
)  # fmt: skip
def test_any_shape_in_blocks_of_any_size(attention_cases, sizes, causal, clamp, block, rows, examples, seed, masks):
    sizes = (*sizes[:3], sizes[2], *sizes[4:]) if causal else sizes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "block_limits", lambda device: (block, examples))
        patch.setattr(chunked, "BLOCK_QUERIES", rows)
        case = attention_cases.make(*sizes, causal=causal, clamp=clamp, seed=seed, masks=masks, layers=2)
        attention_cases.check(attention_mse_sums, case, worse_than_eager=4.0)


class Counted(TorchDispatchMode):
    """Operations of PyTorch; views launch nothing."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("causal", [False, True])
def test_few_launches_where_they_are_what_costs(attention_cases, monkeypatch, causal):
    """At 16 examples of 32 heads and 128 tokens, with a GPU's blocks and with a CPU's; equal numbers."""
    case = attention_cases.make(16, 32, 128, 128, 8, 8, causal=causal, dtype=torch.float16, masks="right")
    found, counts = [], []
    for device in (torch.device("cuda"), torch.device("cpu")):
        limits = chunked.block_limits(device)
        with monkeypatch.context() as patch, Counted() as counted:
            patch.setattr(chunked, "block_limits", lambda _, limits=limits: limits)
            found.append(attention_cases.ours(attention_mse_sums, case, torch.ones(1)))
        counts.append(counted.count)
    print(f"operations of a layer: {counts[0]} in a GPU's blocks, {counts[1]} in a CPU's")
    assert counts[0] <= 60 < counts[1]
    assert attention_cases.error([found[0][0]], [found[1][0]]) < 1e-6
    assert attention_cases.error(found[0][1], found[1][1]) < 1e-3


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_masked_places_may_hold_anything(attention_cases, bad):
    attention_cases.check_masked_places_may_hold_anything(attention_mse_sums, bad)


@pytest.mark.parametrize(
    "claim",
    ["small_gradients_survive", "clamp_edges", "nan_is_not_hidden", "twice_the_same", "nothing_to_do",
     "recomputed_activations", "no_gradient_when_validating"],
)  # fmt: skip
def test_holds(attention_cases, claim):
    getattr(attention_cases, f"check_{claim}")(attention_mse_sums)


def test_validation_forms_no_gradients(attention_cases, monkeypatch):
    def refuse(pair):
        raise AssertionError("gradients were formed")

    case = attention_cases.make(2, 2, 5, 5, 4, 4)
    monkeypatch.setattr(chunked._LayerPair, "total_and_slopes", refuse)
    with torch.no_grad():
        case.call(attention_mse_sums)
    with pytest.raises(AssertionError, match="were formed"):
        case.call(attention_mse_sums)


def test_what_does_not_fit_is_refused(attention_cases):
    plain = attention_cases.make(2, 2, 5, 7, 16, 16)
    for change, _, said in attention_cases.REFUSED:
        sizes = {"examples": 2, "count": 2, "queries": 5, "keys": 7, "student": 16, "teacher": 16} | change
        causal = sizes.pop("causal", False)
        students = attention_cases.make(**sizes).students
        with pytest.raises(ValueError, match=said):
            attention_mse_sums(students, plain.teachers, plain.query_mask, plain.key_mask, causal, None)


MEASURE = """
import pathlib, torch
from distill_engine.losses.kernels.attention_mse import attention_mse_sum
from distill_engine.losses.kernels.attention_mse_chunked import attention_mse_sums
from distill_engine.values import QueryKey

def resident(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0]) * 1024
def side(grad): return QueryKey(*(torch.randn(4, L, 16, 64).transpose(1, 2).requires_grad_(grad) for _ in "qk"), 0.125)
def extra(loss, pair):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the highest value so far
    before = resident("VmRSS")
    torch.autograd.grad(loss(*pair), [pair[0].query, pair[0].key])
    return resident("VmHWM") - before

L = 64
seen = torch.ones(4, L, dtype=torch.bool)
blocks = lambda s, t: attention_mse_sums([s], [t], seen, seen, False, 65504.0)[0]
whole = lambda s, t: attention_mse_sum(s, t, seen[:, :, None] & seen[:, None], 65504.0)
extra(blocks, (side(True), side(False))), extra(whole, (side(True), side(False)))  # libraries load, pools are made
L = 1024
seen, pair = torch.ones(4, L, dtype=torch.bool), (side(True), side(False))
print(extra(blocks, pair), extra(whole, pair))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_stays_far_below_one_score_matrix(root):
    """BART's shape, a process of its own: growth of resident memory beyond inputs. A score matrix takes 268 MB."""
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    blocks, whole = map(int, done.stdout.split())
    print(f"peak extra memory: {blocks / 1e6:.0f} MB in blocks, {whole / 1e6:.0f} MB whole")
    gradients = 2 * 4 * 16 * 1024 * 64 * 4
    matrices = 2 * 4 * 16 * 1024 * 1024 * 4
    assert whole > matrices  # the measurement sees what it should
    assert blocks - gradients < 0.1 * matrices / 2 and blocks < 0.1 * whole
