"""The kernels of task and prediction, compiled for GPUs that are not here: registers, no spills, wide loads."""

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="Triton is not installed on this machine")

KERNELS = {
    "_sums_kernel": {"found_ptr": "*fp32"},
    "_gradient_kernel": {"moments_ptr": "*fp32", "task_ptr": "*fp32", "prediction_ptr": "*fp32"},
}
MEASURED = {
    "_values_kernel": {"moments_ptr": "*fp32", "number": "fp32", "found_ptr": "*fp32"},
    "_gradient_kernel": {"moments_ptr": "*fp32", "number": "fp32"}
    | dict.fromkeys(("slopes_ptr", "task_ptr", "prediction_ptr"), "*fp32"),
}
# of fp16 logits, both models, 4096 ids per program: two 16-byte loads per thread and model (the biases' are narrow)
LEAST_WIDE_LOADS = 4


def job(compiled, kernel: str, capability: int):
    """As launched for Blenderbot's or BART's logits in fp16; rows are a multiple of 64 ids, the vocabulary is odd."""
    signature = dict.fromkeys(("student_ptr", "teacher_ptr", "student_bias_ptr", "teacher_bias_ptr"), "*fp16")
    signature |= {"labels_ptr": "*i64"} | dict.fromkeys(("tokens", "width", "stride", "first", "masked"), "i32")
    signature |= {"temperature": "fp32"} | KERNELS[kernel]
    constants = {"STUDENT_FILL": -65504.0, "TEACHER_FILL": -65504.0, "STUDENT_BIAS": True, "TEACHER_BIAS": True}
    constants |= {"TEACHER": True, "TEMPERED": True, "COLUMNS": 4096}
    return compiled.Job(
        "distill_engine.losses.kernels.prediction_triton", kernel, signature, constants, capability, num_warps=8,
        divisible=(*(name for name in signature if name.endswith("_ptr")), "stride"),
        label=f"{kernel} fp16",
    )  # fmt: skip


def measured_jobs(compiled, capability: int):
    """The kernels of another divergence, with the twin that takes most."""
    twin = "distill_engine.losses.divergences.jensen_shannon_triton:value_and_slope"
    for kernel, own in MEASURED.items():
        found = job(compiled, "_gradient_kernel", capability)
        kept = {name: kind for name, kind in found.signature.items() if name not in KERNELS["_gradient_kernel"]}
        constants = {name: value for name, value in found.constexprs.items() if name not in ("TEACHER", "TEMPERED")}
        yield replace(
            found, module="distill_engine.losses.kernels.prediction_divergence_triton", kernel=kernel,
            signature=kept | own, constexprs=constants | {"LOGITS": False, "POINTWISE": twin},
            divisible=(*(name for name in kept | own if name.endswith("_ptr")), "stride"),
            label=f"Jensen-Shannon {kernel} fp16",
        )  # fmt: skip


def test_no_spills_and_wide_loads(compiled):
    jobs = [job(compiled, kernel, one) for one in (80, 90, 100) for kernel in KERNELS]
    reports = compiled.compile_reports(jobs + [one for each in (80, 90, 100) for one in measured_jobs(compiled, each)])
    print(*(report.line() for report in reports), sep="\n")
    assert not [(report.line(), report.complaints()) for report in reports if report.complaints()]
    for report in reports:
        assert report.instructions["16-byte loads"] >= LEAST_WIDE_LOADS, report.line()
        assert report.instructions["atomics"] == 0, report.line()
