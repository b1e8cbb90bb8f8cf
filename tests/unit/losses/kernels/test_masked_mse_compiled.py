"""masked_mse_triton compiled for three generations of GPUs: no register spills, tensor cores, no atomics."""

import pytest

KERNELS = "distill_engine.losses.kernels.masked_mse_kernels_triton"
HOST = pytest.importorskip("distill_engine.losses.kernels.masked_mse_launches_triton", reason="needs triton")
TILES = {"fp16": HOST.HALF_TILES, "bf16": HOST.HALF_TILES, "fp32": HOST.FLOAT_TILES}
SIZES = ("tokens", "width", "depth")
NOT_SPECIALISED = ("tokens", "factor", "partial", "bias_parts")
OUT = ("factor", "partial", "slope")
PROJECTED = ("student", "weight", "bias", "teacher", "keep", *OUT, "bias_parts", *SIZES, "clamp")
PLAIN = ("student", "bias", "teacher", "keep", *OUT, "tokens", "width", "clamp")
PRODUCT = ("slope", "student", "keep", "before", "after", *SIZES)


def job(compiled, capability, kernel, dtype, arguments, unused=(), **constexprs):
    """One kernel as a launch at these widths specialises it; `unused` pointers are None."""
    types = {"keep": "*i32", "factor": "*fp32", "partial": "*fp32", "bias_parts": "*fp32", "before": "*fp32"}
    types |= dict.fromkeys(SIZES, "i32") | {"clamp": "fp32"}
    signature = {name: types.get(name, f"*{dtype}") for name in arguments if name not in unused}
    options = constexprs | dict.fromkeys(unused)
    tiles = TILES[dtype]
    if kernel == "weight_gradient" and dtype != "fp32":
        tiles = HOST.HALF_GRADIENT_TILES
    if kernel == "plain_error":
        options |= {"ROWS": HOST.PLAIN_ROWS, "COLUMNS": HOST.PLAIN_COLUMNS}
        launch = {"num_warps": HOST.PLAIN_WARPS}
    else:
        options |= {"WIDEN": False, "ROWS": tiles.rows, "COLUMNS": tiles.columns, "DEPTH": tiles.depth}
        launch = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    divisible = tuple(name for name in signature if name not in ("clamp", *NOT_SPECIALISED))
    label = f"{kernel} {dtype} without {', '.join(unused) or 'nothing'}"
    return compiled.Job(KERNELS, kernel, signature, options, capability, divisible=divisible, label=label, **launch)


def jobs(compiled, capability, dtypes):
    """The forward and the backward launch of each kernel."""
    forward, backward = ("factor", "slope", "bias_parts"), ("partial",)
    for dtype in dtypes:
        yield job(compiled, capability, "projected_error", dtype, PROJECTED, forward, CLAMP=True)
        yield job(compiled, capability, "projected_error", dtype, PROJECTED, backward, CLAMP=True)
        yield job(compiled, capability, "weight_gradient", dtype, PRODUCT)
    yield job(compiled, capability, "plain_error", "fp16", PLAIN, ("bias", "factor", "slope"), CLAMP=True)
    yield job(compiled, capability, "plain_error", "fp16", PLAIN, ("bias", *backward), CLAMP=True)


@pytest.fixture(scope="module")
def reports(compiled):
    """fp16 for all three; the other types compile to the same structure and are looked at once each."""
    listed = [*jobs(compiled, 80, ["fp16", "bf16"]), *jobs(compiled, 90, ["fp16", "fp32"])]
    return compiled.compile_reports([*listed, *jobs(compiled, 100, ["fp16"])])


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_keeps_its_tile_in_registers(reports, capability, capsys):
    found = [report for report in reports if report.capability == capability]
    with capsys.disabled():
        print("", *(report.line() for report in found), sep="\n")
    assert len(found) >= 5
    assert not [f"{report.label}: {complaint}" for report in found for complaint in report.complaints()]
    for report in found:
        assert report.instructions["atomics"] == 0
        assert report.instructions["16-byte loads"] > 0, report.line()
        products = "plain" not in report.label and "fp32" not in report.label
        assert bool(report.instructions["tensor-core products"]) == products, report.line()
