"""Every kernel at every shape of benchmarks/kernels.py on compute capability 9.0: two blocks per multiprocessor.

test_oldest_triton.py compiles the same with the oldest Triton.
"""

import kernel_cases
import pytest

from distill_engine.losses.kernels.occupancy import register_limit

pytest.importorskip("triton.backends.nvidia", reason="Triton's NVIDIA backend is not installed")

CAPABILITY = 90
SHORT = {"float16": "fp16", "bfloat16": "bf16"}


def jobs(compiled, beside_this, dtypes=tuple(SHORT)):
    """All kernels of all benchmarked cases, each once."""
    attention, masked, prediction = (
        beside_this(f"test_{name}_compiled") for name in ("attention_mse", "masked_mse", "prediction")
    )
    shapes = {}
    for case in kernel_cases.CASES:
        if case.group == "attention":
            longest = max(case.queries, case.keys)
            shapes.setdefault((case.student_size, case.teacher_size, longest, case.causal), case.name)
    for dtype in dtypes:
        for (*sizes, causal), name in shapes.items():
            for kernel in ("forward_kernel", "backward_kernel"):
                label = f"{name} {SHORT[dtype]}"
                yield attention.job_at(compiled, label, sizes, CAPABILITY, kernel, causal=causal, dtype=dtype)
    yield from masked.jobs(compiled, CAPABILITY, [SHORT[dtype] for dtype in dtypes])
    yield from (prediction.job(compiled, kernel, CAPABILITY) for kernel in prediction.KERNELS)


def complaints(reports):
    """What is wrong with each of them."""
    found = [f"{report.line()}: {said}" for report in reports for said in report.complaints()]
    return found + [f"{report.line()}: wants two blocks" for report in reports if report.blocks < 2]


def test_two_blocks_per_multiprocessor_at_every_benchmarked_shape(compiled, beside_this, capsys):
    reports = compiled.compile_reports(list(jobs(compiled, beside_this)))
    with capsys.disabled():
        print("", *(report.line() for report in reports), sep="\n")
    assert not complaints(reports)


def test_one_block_is_seen(compiled, beside_this):
    """The projection's backward kernel without the limit takes more than half of the registers."""
    every, label = jobs(compiled, beside_this, ["float16"]), "projected_error fp16 without partial"
    (job,) = (job for job in every if job.label == label)
    (report,) = compiled.compile_reports([compiled.Job(**{**vars(job), "limited": False})])
    assert report.blocks < 2 and "wants two blocks" in complaints([report])[-1]


def test_the_limit_is_for_one_generation_and_large_blocks():
    assert register_limit((9, 0), 8) == {"maxnreg": 128}
    assert register_limit((9, 0), 4) == register_limit((8, 0), 8) == register_limit((10, 0), 8) == {}
