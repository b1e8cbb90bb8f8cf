"""The programs that run a student, by name: PyTorch, PyTorch in int8, every export that generates, quantised or not.

`torch`, `torch-int8`, and for each target of the registry its name, or its name, a dash and one of its quantisations
(`onnx`, `onnx-int8`, `ctranslate2-float16`).
"""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from distill_engine.export.protocol import Target, TargetError, files_mib
from distill_engine.models.loading import Checkpoint
from distill_engine.registry import load, names

TORCH, TORCH_INT8 = "torch", "torch-int8"


@dataclass(frozen=True)
class Running:
    """A student in one program.

    model        what generates (a transformers model, or a target's `ExportedModel`)
    mib_on_disk  of its weights, as that program stores them
    memory_mib   that opening it and one reply added to this process's resident memory, as the operating system counts;
                 None on a GPU, whose memory is measured while it replies
    """

    backend: str
    model: Any
    mib_on_disk: float
    memory_mib: float | None


def backend_names() -> list[str]:
    """All that can be asked for by name, whether their libraries are installed or not."""
    targets: list[tuple[str, Target]] = [(name, load("exports", name)) for name in names("exports")]
    runnable = [(name, target) for name, target in targets if target.generates]
    quantised = [f"{name}-{kind}" for name, target in runnable for kind in target.quantizations]
    return [TORCH, TORCH_INT8, *sorted([*(name for name, _ in runnable), *quantised])]


def chosen_backends(given: str) -> list[str]:
    """The names of a comma-separated list. Raises TargetError for one that is none."""
    words = list(dict.fromkeys(word.strip() for word in given.split(",") if word.strip()))
    known = backend_names()
    if not words or not set(known).issuperset(words):
        raise TargetError(f"--backends {given!r}: a comma-separated list of {', '.join(known)} is needed.")
    return words


def running(
    student: Path,
    backends: Sequence[str],
    folder: Path,
    device: torch.device,
    first_reply: Callable[[Any], object],
) -> list[Running]:
    """The student in each of them, PyTorch always first, asked for or not: it is what the others are compared with.

    folder       where exports are written; must live as long as they
    device       where PyTorch runs; the others choose their own
    first_reply  called once with each model, before its memory is read

    Raises TargetError with everything that any of them lacks, before one is used.
    """
    problems, found = [], []

    def opened(backend: str, make: Callable[[], Any], mib: Callable[[Any], float]) -> None:
        before = _resident_mib()
        model = make()
        first_reply(model)
        after = _resident_mib()
        memory = max(0.0, after - before) if model.device.type == "cpu" else None
        found.append(Running(backend, model, mib(model), memory))

    opened(TORCH, lambda: _in_torch(student, device), lambda _: files_mib(student, "*.safetensors"))
    for backend in backends:
        try:
            if backend == TORCH_INT8:
                opened(backend, lambda: int8_twin(_in_torch(student, torch.device("cpu"))), _saved_mib)
            elif backend != TORCH:
                written = _written(student, backend, folder / backend)
                opened(backend, written, lambda model: float(model.mib_on_disk))
        except TargetError as error:
            problems.append(f"--backends {backend}: {error}")
    if problems:
        raise TargetError("\n".join(problems))
    return found


def int8_twin(model: Any) -> Any:
    """The same model with int8 weights in its linear layers, each output channel of a scale of its own, on the CPU;
    activations are quantised while it runs.

    Raises TargetError where this PyTorch has no such arithmetic, or the model no layer that it knows: subclasses of
    torch.nn.Linear, an adapted model's too, would silently stay as they are.
    """
    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    quantization: Any = getattr(torch.ao, "quantization", None)
    if not engines or not hasattr(quantization, "quantize_dynamic"):
        raise TargetError(f"PyTorch {torch.__version__} has no dynamic int8 for this machine's CPU.")
    if not any(type(module) is nn.Linear for module in model.modules()):
        raise TargetError(f"{type(model).__name__} has no layers of torch.nn.Linear, which are what int8 is for.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is on its way out of PyTorch, into torchao
        each = {nn.Linear: quantization.per_channel_dynamic_qconfig}
        return quantization.quantize_dynamic(copy.deepcopy(model).eval(), each)


def _in_torch(student: Path, device: torch.device) -> Any:
    model: Any = Checkpoint(student).load(torch.float32)
    return model.to(device).eval()


def _written(student: Path, backend: str, folder: Path) -> Callable[[], Any]:
    """Writes the export now; what is returned opens it."""
    name, _, quantize = backend.partition("-")
    target: Target = load("exports", name)
    target.write(student, folder, quantize or None, None)
    return lambda: target.open(folder)


def _saved_mib(model: Any) -> float:
    written = io.BytesIO()
    torch.save(model.state_dict(), written)
    return written.getbuffer().nbytes / 2**20


def _resident_mib() -> float:
    """Of this process, after what is free has been given back; without that a second model would look smaller than it
    is, because it finds the first one's memory."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    resident: int = psutil.Process().memory_info().rss
    return resident / 2**20
