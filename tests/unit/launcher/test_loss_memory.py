"""What the plan says of a plugin's loss term, and of another divergence than forward KL."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from distill_engine.families.shape import Sizes
from distill_engine.losses.divergences.reverse_kl import REVERSE_KL, ReverseKL
from distill_engine.losses.kernels.prediction import divergence_sum, task_sum
from distill_engine.losses.kernels.projection_ways import faster_way
from distill_engine.losses.top_tokens import beside_student
from distill_engine.teachers.config import TeacherShare
from launcher.hardware import GPUS
from launcher.job import Job
from launcher.job_files import read_job
from launcher.loss_memory import LIBRARY_DEPTH, captured, compared_tokens, different_layers, losses

ONLY = ("encoder", "embedding", "hidden", "self_attention", "cross_attention")


def job(root, *overrides: str) -> Job:
    files = root / "ds_configs" / "zero2_fp32.json", root / "ds_configs" / "teacher_zero3.json"
    return read_job(root / "recipes" / "bb3b_tinybert.yaml", list(overrides), 1, 1, *files, GPUS["h100"])


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_another_divergence_needs_more(root, kernels, monkeypatch):
    chosen = f"losses.kernels.prediction={kernels}"
    forward, reverse = (job(root, chosen, f"losses.divergence={name}_kl") for name in ("forward", "reverse"))
    if kernels == "reference":
        assert losses(forward) < losses(reverse) < 3 * losses(forward)
    else:  # its twin in Triton writes over the block; torch, which a divergence without one takes, needs slopes
        assert losses(forward) == losses(reverse)
        monkeypatch.setattr(ReverseKL, "twin", "")
        assert losses(forward) < losses(reverse) < 3 * losses(forward)
    alone = [job(root, chosen, f"losses.divergence={name}_kl", "losses.weights.prediction=0") for name in
             ("forward", "reverse")]  # fmt: skip
    assert losses(alone[0]) == losses(alone[1]), "nobody asks for it"


def test_projections_in_the_librarys_products_hold_what_waits(root):
    """Half precision: G of every comparison in 32 bits; float32 products stay in the kernels, which hold nothing."""
    asked = ["batch.per_rank=32", "losses.kernels.prediction=fused", "losses.weights.self_attention=0",
             "losses.weights.cross_attention=0"]  # fmt: skip

    def planned(config: str, projections: str) -> Job:
        files = root / "ds_configs" / config, root / "ds_configs" / "teacher_zero3.json"
        overrides = [*asked, f"student.projections={projections}"]
        return read_job(root / "recipes" / "bb3b_tinybert.yaml", overrides, 1, 1, *files, GPUS["h100"])

    plain, projected = (planned("zero2.json", how) for how in ("auto", "always"))
    width = plain.student.width
    held = sum(4 * tokens * width for tokens in compared_tokens(projected))
    assert losses(projected) >= held > losses(plain) > 0
    plain, projected = (planned("zero2_fp32.json", how) for how in ("auto", "always"))
    assert losses(projected) - losses(plain) < held / 2


def test_features_of_another_teacher_have_its_sizes(root):
    """Of two teachers, one of half the width: what is held of the one that is compared, and maps to its width."""
    one = job(root)
    assert one.teacher is not None
    small = one.teacher.resized(Sizes(width=one.teacher.width // 2))

    def of(features: int) -> Job:
        teachers = [TeacherShare(path=name, features=number == features) for number, name in enumerate("ab")]
        return replace(one, others=(small,), recipe=one.recipe.model_copy(update={"teachers": teachers}))

    first, second = of(0), of(1)
    assert captured(second) < captured(first) and different_layers(first) == different_layers(second)
    assert one.weights - one.student.parameters == 2 * (second.weights - one.student.parameters) > 0, "projections"


@pytest.mark.parametrize("tokens", [1, 2048, 65536])
@pytest.mark.parametrize("width", [80, 2560])
def test_the_plan_knows_from_which_width_on(tokens, width):
    assert faster_way(tokens, LIBRARY_DEPTH, width) == "library"
    assert faster_way(tokens, LIBRARY_DEPTH - 1, width) == "kernels"


@pytest.mark.parametrize("some", [False, True], ids=["all", "some_tokens"])
def test_whole_logits_take_what_is_planned(root, some):
    """All that is allocated from the logits on, at the largest moment, beside the plan's figure."""
    vocabulary = 8008
    asked = ["losses.divergence=reverse_kl", "losses.kernels.prediction=reference", "batch.per_rank=1",
             *(f"losses.weights.{name}=0" for name in ONLY)]  # fmt: skip
    small = job(root, *asked)
    cached = job(root, *asked, "teacher.source=cache", "teacher.cache=none")
    student, teacher = (torch.randn(1, small.labels, vocabulary) for _ in range(2))
    student.requires_grad_()
    labels = torch.randint(vocabulary, (1, small.labels))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        right = beside_student(teacher, teacher.topk(8, dim=-1).indices, student) if some else teacher
        sums = task_sum(student, labels), divergence_sum(REVERSE_KL, student, right, labels, 1.0)
    now = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert all(torch.isfinite(one) for one in sums)
    planned = losses(small) - small.labels * small.student.vocab * small.word  # without the logits themselves
    planned += (captured(cached) - captured(small)) * some
    assert small.student.vocab == vocabulary and most == pytest.approx(planned, rel=0.15)


@pytest.mark.parametrize(("form", "copies"), [(None, 2), ({"k": 8, "head": False}, 2), ({"k": None, "head": False}, 1)])
def test_logits_of_a_cache_are_whole_and_may_have_32_bits(root, tmp_path, form, copies):
    if form is not None:
        (tmp_path / "manifest.json").write_text(json.dumps({"form": form}))
    files = root / "ds_configs" / "zero2_bf16.json", root / "ds_configs" / "teacher_zero3.json"
    live, cached = (
        read_job(root / "recipes" / "bb3b_tinybert.yaml", overrides, 1, 1, *files, GPUS["h100"])
        for overrides in (
            ["losses.kernels.prediction=reference"],
            ["teacher.source=cache", f"teacher.cache={tmp_path}"],
        )
    )
    assert captured(cached) - captured(live) == cached.labels * 8008 * (4 * copies - 2)


def test_a_plugins_term_is_priced_without_torch(root):
    """As the launcher runs: in a process that never loads torch."""
    code = f"""
import json, sys
from pathlib import Path
from distill_engine.registry import load_plugins
load_plugins([{str(root / "tests" / "extension" / "toy_term.py")!r}])
from launcher.hardware import GPUS
from launcher.loss_memory import captured, compared_tokens
from launcher.job_files import read_job
root, found = Path({str(root)!r}), []
for weight in (0, 1):
    files = root / "ds_configs" / "zero2.json", root / "ds_configs" / "teacher_zero3.json"
    job = read_job(root / "recipes" / "bb3b_tinybert.yaml", [f"losses.weights.cosine={{weight}}"], 1, 8, *files,
                   GPUS["h100"])
    found.append([job.weights, len(compared_tokens(job)), captured(job), job.contexts * job.teacher.width * job.word])
print(json.dumps([found, "torch" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (without, with_it), torch_was_loaded = json.loads(done.stdout)
    assert with_it[0] - without[0] == 2560 * 2560 + 2560, "a projection of its own"
    assert with_it[1] - without[1] == 1 and with_it[2] - without[2] == without[3]
    assert not torch_was_loaded
