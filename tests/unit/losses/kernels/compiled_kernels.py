"""Compiles Triton kernels for GPUs that are not here and reads what the assembler says about them.

    job = Job("distill_engine.losses.x_triton", "_kernel", {"x": "*fp16", "n": "i32"}, {"BLOCK": 64}, capability=90)
    reports = compile_reports([job])
    reports[0].registers, reports[0].spill_bytes, reports[0].shared_bytes

Triton's compiler and ptxas need no GPU, but they do need a process that is not in interpreter mode: this file starts
itself as a script (jobs on stdin, reports on stdout, both JSON). Tests take `compile_reports` and `Job` from the
fixture `compiled` of conftest.py.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[4]
MOST_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # of one block, by compute capability
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}  # of one multiprocessor
SHARED_BYTES_OF_THE_SYSTEM = 1024  # per block
MOST_STACK_BYTES = {80: 0, 90: 32, 100: 0}  # of a thread: a few words are a fair price for a second block
REGISTERS, REGISTERS_AT_A_TIME, THREADS, WARP = 65536, 256, 2048, 32


@dataclass(frozen=True)
class Job:
    """One kernel at one set of constants.

    module      where the kernel is
    kernel      its name there
    signature   every argument that is not constexpr: name -> "*fp16", "*fp32", "*i64", "i32", "i64", "fp32" ...
    constexprs  every constexpr argument: name -> value; a string "triton.language:float16" means that object
    capability  80, 90 or 100
    divisible   arguments that are multiples of 16 (pointers and strides usually are; a launch finds out by itself)
    limited     with the limit of registers that a launch gives (occupancy.register_limit)
    """

    module: str
    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, Any]
    capability: int
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    label: str = ""
    limited: bool = True


@dataclass(frozen=True)
class Report:
    """What one compiled kernel needs per thread (registers, stack, spills) and per block (threads, shared memory)."""

    label: str
    capability: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    threads: int
    loop: int = 0  # PTX instructions of the longest loop
    instructions: dict[str, int] = field(default_factory=dict)
    triton: str = ""

    @property
    def blocks(self) -> int:
        """That one multiprocessor holds at once."""
        of_a_warp = -(-self.registers * WARP // REGISTERS_AT_A_TIME) * REGISTERS_AT_A_TIME
        by_shared = SHARED_BYTES[self.capability] // (self.shared_bytes + SHARED_BYTES_OF_THE_SYSTEM)
        return min(REGISTERS // of_a_warp // (self.threads // WARP), by_shared, THREADS // self.threads)

    def line(self) -> str:
        """For the test's output."""
        counted = ", ".join(f"{count} {name}" for name, count in self.instructions.items() if count)
        return (
            f"sm_{self.capability} {self.label}: {self.registers} registers, {self.stack_bytes} bytes of stack, "
            f"{self.spill_bytes} bytes spilled, {self.shared_bytes} bytes of shared memory, {self.blocks} blocks of "
            f"{self.threads} threads per SM; {self.loop} instructions in the loop, {counted}"
        )

    def complaints(self) -> list[str]:
        """Why this kernel would be slow or would not start; empty when all is well."""
        much = self.stack_bytes > MOST_STACK_BYTES[self.capability]
        found = [f"spills {self.spill_bytes} bytes"] if self.spill_bytes and much else []
        if self.shared_bytes > MOST_SHARED_BYTES[self.capability]:
            found.append(f"needs {self.shared_bytes} bytes of shared memory, over {MOST_SHARED_BYTES[self.capability]}")
        return found


def compile_reports(jobs: Sequence[Job], processes: int = 2) -> list[Report]:
    """One report per job, in order; compiled by a few processes without interpreter mode."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    shares = [jobs[first::processes] for first in range(processes)]
    workers = [
        subprocess.Popen([sys.executable, __file__], env=environment, text=True, cwd=ROOT,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in shares
    ]  # fmt: skip
    for worker, share in zip(workers, shares, strict=True):  # all get their jobs before any answer is waited for
        worker.stdin.write(json.dumps([asdict(job) for job in share]))
        worker.stdin.close()
        worker.stdin = None
    answers = [worker.communicate(timeout=500) for worker in workers]
    for worker, (_, errors) in zip(workers, answers, strict=True):
        assert worker.returncode == 0, errors
    lists = [[Report(**one) for one in json.loads(output.splitlines()[-1])] for output, _ in answers]
    return [lists[index % processes][index // processes] for index in range(len(jobs))]


# ---- below: inside the script's own process ----------------------------------------------------------------------


def compile_report(job: Job) -> Report:
    """Compile one kernel down to machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from distill_engine.losses.kernels.occupancy import register_limit

    kernel = getattr(importlib.import_module(job.module), job.kernel)
    names = [parameter.name for parameter in kernel.params]
    signature = {name: job.signature.get(name, "constexpr") for name in names}
    given = {name: _object(value) for name, value in job.constexprs.items()}
    unknown = [*(job.signature.keys() - set(names)), *(given.keys() - set(names))]
    missing = [name for name in names if signature[name] == "constexpr" and name not in given]
    assert not unknown and not missing, f"{job.kernel}: no such arguments {unknown}; no value for {missing}"
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name in job.divisible}
    source = ASTSource(kernel, signature, constexprs=given, attrs=hints)
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages, "enable_fp_fusion": True}
    if job.limited:
        options |= register_limit(divmod(job.capability, 10), job.num_warps)
    built = triton.compile(source, target=GPUTarget("cuda", job.capability, 32), options=options)
    ptx = built.asm["ptx"]
    threads = WARP * built.metadata.num_warps
    needs = (*_assemble(ptx, job.capability), built.metadata.shared, threads, loop_instructions(ptx), _count(ptx))
    return Report(job.label or job.kernel, job.capability, *needs, triton.__version__)


def _object(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    module, _, name = value.partition(":")
    return getattr(importlib.import_module(module), name)


def _assemble(ptx: str, capability: int) -> tuple[int, int, int]:
    """(registers, bytes of stack, spilled bytes) per thread, as ptxas reports them."""
    from triton.backends.nvidia.compiler import get_ptxas  # the assembler that Triton itself takes for this GPU

    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert architecture is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        target = ["-o", str(source.with_suffix(".o")), f"--gpu-name={architecture[1]}"]
        command = [get_ptxas(capability).path, "-v", str(source), *target]
        done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    used, spills = re.search(r"Used (\d+) registers", said), re.findall(r"(\d+) bytes spill", said)
    stack = re.search(r"(\d+) bytes stack frame", said)
    assert used is not None and stack is not None and spills, said
    return int(used[1]), int(stack[1]), sum(map(int, spills))


def loop_instructions(ptx: str) -> int:
    """Instructions from a label to the branch back to it; of several loops the longest (static count)."""
    seen, longest, labels = 0, 0, dict[str, int]()
    for line in ptx.splitlines():
        if label := re.match(r"(\$L\w+):", line):
            labels[label[1]] = seen
        elif re.match(r"\s+[@\w{]\S*.*;", line):
            seen += 1
            back = re.search(r"\bbra(?:\.uni)?\s+(\$L\w+);", line)
            if back and back[1] in labels:
                longest = max(longest, seen - labels[back[1]])
    return longest


def _count(ptx: str) -> dict[str, int]:
    """Instructions that tell whether loads are wide and products run on tensor cores (static count)."""
    patterns = {
        "tensor-core products": r"^\s*(?:@\S+ )?(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)",
        "16-byte loads": r"cp\.async\.c[ga]\.shared\.global .*0x10|ld\.global\S*\.(?:v4\.b32|v2\.b64|v8\.b32)",
        "scalar loads": r"ld\.global\S*\.b16",
        "atomics": r"\b(?:atom|red)\.",
    }
    return {name: len(re.findall(pattern, ptx, re.MULTILINE)) for name, pattern in patterns.items()}


if __name__ == "__main__":
    print(json.dumps([asdict(compile_report(Job(**one))) for one in json.load(sys.stdin)]))
