"""What rounding adds to a step's memory, beside what autograd really keeps."""

from dataclasses import replace

import pytest
import tiny_models
import torch

from distill_engine.families.lookup import shape_of
from distill_engine.families.shape import Sizes
from distill_engine.losses.config import LossWeights
from launcher.hardware import GPUS
from launcher.job import FULL
from launcher.job_files import read_job
from launcher.memory_model import int8_copies, memory

SIZES = Sizes(encoder_layers=2, decoder_layers=2, width=32, ffn_width=64, dropout=0.0)
CONTEXT, LABEL = 16, 9


def kept(module, batch, request) -> int:
    """Bytes of all tensors but parameters that a forward pass leaves for the backward pass, each once."""
    held, alive = {}, []
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def pack(tensor):
        alive.append(tensor)  # or its memory is the next one's
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(batch, request)
    return sum(size for place, size in held.items() if place not in own)


def test_rounded_copies_are_what_autograd_keeps(tmp_path, root):
    goal = tiny_models.objective(SIZES, LossWeights(task=1.0))
    module = tiny_models.student(tiny_models.save_teacher(tmp_path, "blenderbot"), goal, SIZES, int8=True).train()
    batch = tiny_models.batch(tiny_models.examples(24, "blenderbot"), "blenderbot")
    sizes = []
    for on in (False, True):
        module.quantize(on)
        sizes.append(kept(module, batch, goal.student_request()))
    files = root / "ds_configs" / "zero2_fp32.json", root / "ds_configs" / "teacher_zero3.json"
    given = [f"data.context_tokens={batch.inputs.length}", f"data.label_tokens={batch.labels.shape[1]}"]
    given += ["student.quantize=int8", "batch.per_rank=24", "stop.max_steps=100"]
    job = read_job(root / "recipes" / "demo.yaml", given, 1, 1, *files, GPUS["h100"])
    job = replace(job, student=shape_of(module.model.config))
    passing = 3 * max(job.student.embedding, max(job.contexts, job.labels) * 64) * FULL
    assert int8_copies(job) - passing == pytest.approx(sizes[1] - sizes[0], rel=0.15)
    assert memory(job)["int8 copies"] == int8_copies(job)
    half = int8_copies(replace(job, student_ds={**job.student_ds, "fp16": {"enabled": True}}))
    assert half - passing == pytest.approx((int8_copies(job) - passing) / 2)
    part = job.recipe.student.model_copy(update={"activation_checkpointing": True})
    assert int8_copies(replace(job, recipe=job.recipe.model_copy(update={"student": part}))) < int8_copies(job)
    none = job.recipe.student.model_copy(update={"quantize": None})
    assert "int8 copies" not in memory(replace(job, recipe=job.recipe.model_copy(update={"student": none})))
