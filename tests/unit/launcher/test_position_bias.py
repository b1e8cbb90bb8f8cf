"""What the plan says of position biases is what they take in a real T5."""

import math
from dataclasses import replace

import pytest
import tiny_families
import torch

from distill_engine.losses.config import LossWeights
from distill_engine.losses.kernels.attention_mse import bias_difference
from distill_engine.models.adapter import adapt
from distill_engine.values import AttentionKind, Stack
from launcher import loss_memory
from launcher.hardware import GPUS
from launcher.job_files import read_job
from launcher.loss_memory import captured, position_biases
from launcher.memory_model import bias_masks

ROWS, CONTEXT, LABEL = 3, 12, 8
SELF = (AttentionKind.ENCODER_SELF, AttentionKind.DECODER_SELF)


@pytest.fixture(params=["flan-t5-small", "umt5-small"])
def tiny(request, root, tmp_path):
    """A plan and a model of the same sizes, with the features that the plan's terms ask for."""
    folder = tiny_families.save(request.param, tmp_path / "teacher")
    layers = tiny_families.DECODER_LAYERS
    overrides = [
        f"teacher.path={folder}", f"student.encoder_layers={layers}", f"student.decoder_layers={layers}",
        f"data.context_tokens={CONTEXT}", f"data.label_tokens={LABEL}", f"batch.per_rank={ROWS}",
        "losses.weights={self_attention: 1}", "losses.balance=none",
    ]  # fmt: skip
    files = root / "ds_configs" / "zero2_fp32.json", root / "ds_configs" / "teacher_zero3.json"
    job = read_job(root / "recipes" / "flan_t5_xl.yaml", overrides, 1, 1, *files, GPUS["h100"])
    asked = LossWeights(self_attention=1.0).request({stack: tuple(range(layers)) for stack in Stack})
    model = tiny_families.model(request.param)
    batch = tiny_families.batch(request.param, contexts=(CONTEXT - 1,) * ROWS, labels=(LABEL - 1,) * ROWS)
    return job, asked, adapt(model), batch


def test_biases_beside_captured_scores(tiny):
    job, asked, adapter, batch = tiny
    with torch.no_grad():
        features = adapter(batch, asked)
    found = {one.bias.untyped_storage().data_ptr(): one.bias.nbytes for one in features.attention.values()}
    assert set(features.attention) == {(kind, n) for kind in SELF for n in range(3)}
    assert sum(found.values()) == position_biases(job, job.teacher, asked) * job.word > 0
    apart = [bias_difference(one, one).nbytes for one in features.attention.values()]
    student, teacher = (replace(one, form=replace(one.form, bias_tables="none")) for one in (job.student, job.teacher))
    plain = replace(job, student=student, teacher=teacher)
    assert captured(job) - captured(plain) == sum(found.values())
    held = loss_memory._attention(job, job.teacher).held - loss_memory._attention(plain, teacher).held
    assert held == 2 * sum(apart), "the differences, and their gradients"


def test_masks_that_hold_the_biases(tiny):
    job, asked, adapter, batch = tiny
    kept = {}

    def keep(tensor):
        of_scores = tensor.ndim == 4 and tensor.shape[-1] in (CONTEXT, LABEL)
        if of_scores and tensor.shape[:2] == (ROWS, tiny_families.HEADS):
            kept[tensor.untyped_storage().data_ptr(), tensor.shape[2:]] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapter(batch, asked)
    encoder, decoder = bias_masks(job)
    expected = 3 * (encoder + decoder)
    assert math.isclose(sum(one.nbytes for one in kept.values()), expected)
