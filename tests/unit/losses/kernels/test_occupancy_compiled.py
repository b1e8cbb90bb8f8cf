"""Every kernel at every shape of benchmarks/kernels.py on compute capability 9.0: blocks per multiprocessor, loops.

test_oldest_triton.py compiles the same with the oldest Triton.
"""

import kernel_cases
import pytest

from distill_engine.losses.kernels.occupancy import register_limit

pytest.importorskip("triton.backends.nvidia", reason="Triton's NVIDIA backend is not installed")

CAPABILITY = 90
# PTX instructions of attention's inner loops, forward and backward, with either Triton (before the diagonal alone was
# masked and equal scales shared an accumulator, with 3.9: 620/628, 664/689, 424/767, 612/610, 554/520)
MOST_INSTRUCTIONS = {
    "bb3b_encoder_self": (440, 520), "bb3b_decoder_self": (512, 584), "bb3b_decoder_self_32": (304, 648),
    "bb364m_encoder_self": (520, 532), "bart_large_encoder_self": (386, 412),
}  # fmt: skip
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
    for report in reports:
        name, _, part = report.label.partition(" ")
        if name in MOST_INSTRUCTIONS:
            most = MOST_INSTRUCTIONS[name]["backward" in part]
            found += [f"{report.line()}: wants at most {most}"] * (report.loop > most)
    return found + [f"{report.line()}: wants two blocks" for report in reports if report.blocks < 2]


def test_two_blocks_and_short_loops_at_every_benchmarked_shape(compiled, beside_this, capsys):
    cases = {case.name for case in kernel_cases.CASES}
    assert cases >= MOST_INSTRUCTIONS.keys()
    reports = compiled.compile_reports(list(jobs(compiled, beside_this)))
    with capsys.disabled():
        print("", *(report.line() for report in reports), sep="\n")
    assert not complaints(reports)
    bounded = [report for report in reports if report.label.partition(" ")[0] in MOST_INSTRUCTIONS]
    assert len(bounded) == 2 * 2 * len(MOST_INSTRUCTIONS)  # passes, dtypes


def test_one_block_is_seen(compiled, beside_this):
    """The projection's backward kernel without the limit takes more than half of the registers."""
    every, label = jobs(compiled, beside_this, ["float16"]), "projected_error fp16 without partial"
    (job,) = (job for job in every if job.label == label)
    (report,) = compiled.compile_reports([compiled.Job(**{**vars(job), "limited": False})])
    assert report.blocks < 2 and "wants two blocks" in complaints([report])[-1]


def test_loops_are_counted(compiled):
    """From the label to the branch back, the longest one; a branch forward is no loop."""
    ptx = """
$L__BB0_1:
\tadd.s32 \t%r1, %r1, 1;
\t@%p1 bra \t$L__BB0_3;
$L__BB0_2:
\t{ wgmma.fence.sync.aligned; }
\t@%p2 bra \t$L__BB0_2;
\t.loc 1 2 3
$L__BB0_3:
\tbra.uni \t$L__BB0_1;
"""
    assert compiled.loop_instructions(ptx) == 5


def test_the_limit_is_for_one_generation_and_large_blocks():
    assert register_limit((9, 0), 8) == {"maxnreg": 128}
    assert register_limit((9, 0), 4) == register_limit((8, 0), 8) == register_limit((10, 0), 8) == {}
