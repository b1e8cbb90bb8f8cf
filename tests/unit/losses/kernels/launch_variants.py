"""How many variants of each kernel Triton would compile for the launches of a run with changing lengths.

A script, since it needs a process without interpreter mode: the kernels are replaced by what Triton's launcher does
before it compiles, on tensors that only have addresses. Prints {kernel: variants} as JSON.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from distill_engine.losses.kernels import (
    attention_mse_triton,
    masked_mse_launches_triton,
    masked_mse_triton,
    prediction_triton,
)
from distill_engine.losses.kernels.prediction_blocks import from_hidden
from distill_engine.values import QueryKey

LENGTHS = (1, 2, 7, 16, 31, 48, 64, 100, 128)
KERNELS = (
    (attention_mse_triton, ("forward_kernel", "backward_kernel")),
    (masked_mse_launches_triton, ("projected_error", "plain_error", "weight_gradient")),
    (prediction_triton, ("_sums_kernel", "_gradient_kernel")),
)


class Recorder:
    """Stands in for one kernel."""

    def __init__(self, kernel: Any) -> None:
        self.variants: set[str] = set()
        self._binder = create_function_from_signature(
            kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32))
        )

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            _, specialization, others = self._binder(*arguments, **options)
            self.variants.add(repr((specialization, sorted(others.items()))))

        return launch


def attention(length: int, layers: int) -> None:
    """Encoder self-attention of a batch of one and of three."""
    for examples in (1, 3):

        def side(examples: int = examples) -> list[QueryKey]:
            shape = examples, length, 16, 16
            return [
                QueryKey(*(torch.zeros(shape).half().transpose(1, 2).requires_grad_() for _ in "qk"), 0.25)
                for _ in range(layers)
            ]

        seen = torch.ones(examples, length, dtype=torch.bool)
        attention_mse_triton.attention_mse_sums(side(), side(), seen, seen, False, 2.0).sum().backward()


def hidden(tokens: int, layers: int) -> None:
    """Layers with and without a projection."""
    for width in (32, None):
        weight = None if width is None else torch.zeros(32, 16).half().requires_grad_()
        bias = None if width is None else torch.zeros(32).half().requires_grad_()
        students = [(torch.zeros(1, tokens, 16).half().requires_grad_(), weight, bias) for _ in range(layers)]
        teachers = [torch.zeros(1, tokens, width or 16).half() for _ in range(layers)]
        mask = torch.ones(1, tokens, dtype=torch.bool)
        masked_mse_triton.projected_mse_sums(students, teachers, mask, 2.0).sum().backward()


def prediction(tokens: int) -> None:
    """A vocabulary of more than a program's columns, with and without a masked id."""
    student, teacher = ([torch.zeros(1, tokens, 8).half(), torch.zeros(5001, 8).half(), None] for _ in "st")
    for tensor in student[:2]:
        tensor.requires_grad_()
    labels = torch.zeros(1, tokens, dtype=torch.int64)
    for masked in (None, 1, 17):
        pointwise = prediction_triton.TritonPointwise()
        sum(from_hidden(pointwise, [*student, *teacher], labels, masked, 1.0)[:2]).backward()


def main() -> None:
    triton.knobs.runtime.interpret = True  # only so that tensors of a CPU are accepted; kernels are compiled ones
    recorders = {}
    for module, names in KERNELS:
        for name in names:
            recorders[name] = Recorder(getattr(module, name))
            setattr(module, name, recorders[name])
    for length in LENGTHS:
        attention(length, layers=3)
        hidden(length, layers=5)
        prediction(length)
    print(json.dumps({name: len(recorder.variants) for name, recorder in recorders.items()}))


if __name__ == "__main__":
    main()
