"""The fused attention term compiled for GPUs that are not here: registers, spills, shared memory."""

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton's NVIDIA backend is not installed")

from distill_engine.losses.kernels.attention_mse_triton import pieces, tile_options

# student head size, teacher head size, longest sequence, the capabilities at which the causal variant is tried too
SHAPES = {
    "BlenderBot 364M student": (40, 80, 128, ()),
    "BlenderBot 3B width": (80, 80, 128, (80,)),
    "BART-large": (64, 64, 1024, (80,)),
}


def job(compiled, label, capability, kernel, causal=False):
    """One kernel at one of SHAPES."""
    student, teacher, longest, _ = SHAPES[label]
    return job_at(compiled, label, (student, teacher, longest), capability, kernel, causal=causal)


def job_at(compiled, label, sizes, capability, kernel, *, causal, dtype="float16"):
    """One kernel as it is launched; sizes: of the student's and the teacher's heads, and the longest sequence."""
    student, teacher, longest = sizes
    widest = max(sum(pieces(student)), sum(pieces(teacher)))
    options = tile_options(longest, widest, half=dtype != "float32", backward=kernel == "backward_kernel")
    constants = {"ADDRESS_UNIT": 16, "STRIDE_UNIT": 8, "CAUSAL": causal, "CLAMP": True}
    constants["EQUAL"] = student == teacher  # scales follow sizes
    constants |= {name: options[name] for name in ("BLOCK_ROWS", "BLOCK_COLUMNS")}
    for side, size in (("S", student), ("T", teacher)):
        main, tail = pieces(size)
        constants |= {f"TYPE_{side}": f"triton.language:{dtype}", f"SIZE_{side}": size}
        constants |= {f"MAIN_{side}": main, f"TAIL_{side}": tail}
    last = "upstream" if kernel == "backward_kernel" else "partials"
    signature = {"table": "*i64", "keep": "*u8", "ends": "*i32", last: "*fp32", "clamp": "fp32"}
    signature |= dict.fromkeys(("examples", "heads", "queries", "keys"), "i32")
    return compiled.Job(
        "distill_engine.losses.kernels.attention_kernels_triton", kernel, signature, constants, capability,
        options["num_warps"], options["num_stages"], ("table", "keep", "ends", last),
        f"{label}, {kernel.removesuffix('_kernel')}{', causal' if causal else ''}",
    )  # fmt: skip


def test_kernels_neither_spill_nor_load_word_by_word(compiled):
    """Fails on spills, on more shared memory than there is, on scalar loads, on products without tensor cores."""
    jobs = [
        job(compiled, label, capability, kernel, causal)
        for capability in (80, 90, 100)
        for label, (*_, causal_at) in SHAPES.items()
        for kernel in ("forward_kernel", "backward_kernel")
        for causal in (False, *[True] * (capability in causal_at and kernel == "backward_kernel"))
    ]
    reports = compiled.compile_reports(jobs)
    print("", *(report.line() for report in reports), sep="\n")
    found = [f"{report.line()}: {said}" for report in reports for said in report.complaints()]
    for report in reports:
        seen = report.instructions
        if seen["scalar loads"] or seen["atomics"] or not (seen["16-byte loads"] and seen["tensor-core products"]):
            found.append(f"{report.line()}: wants 16-byte loads and tensor cores, and no atomics")
    assert not found, "\n".join(found)


def test_spills_are_seen(compiled):
    """The same kernel with tiles far beyond the registers of a thread."""
    fine = job(compiled, "BlenderBot 3B width", 80, "backward_kernel")
    constants = fine.constexprs | {"BLOCK_ROWS": 128, "BLOCK_COLUMNS": 64}
    crowded = compiled.Job(**{**vars(fine), "constexprs": constants, "num_warps": 4})
    (report,) = compiled.compile_reports([crowded])
    assert report.spill_bytes > 0 and "spills" in report.complaints()[0]
