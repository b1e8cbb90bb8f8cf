"""What rank 0 holds while it narrows a student out of its teacher, beside the tensors of a real one."""

from dataclasses import replace

import pytest
import tiny_families as tiny
import torch

from distill_engine.assembly import narrowing as real
from distill_engine.families.lookup import family_of, shape_of
from distill_engine.families.shape import Sizes
from distill_engine.student.build import build_student, student_config
from distill_engine.student.narrow import _Narrowing
from distill_engine.student.watched import Watched
from distill_engine.values import Stack
from launcher.hardware import GPUS
from launcher.job_files import read_job
from launcher.memory_model import host_memory, memory, memory_before
from launcher.narrow_memory import AT_ONCE, looked_at, sums
from launcher.plan import fits
from launcher.remedies import remedies

MAPS = {Stack.ENCODER: (0, 2), Stack.DECODER: (1,)}
HALF = Sizes(2, 1, tiny.WIDTH // 2, tiny.FFN // 2, 1)


def size(*tensors) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


class Recorded(_Narrowing):
    """Keeps its sums."""

    def _fit(self, linear):
        self.fits = getattr(self, "fits", [])
        self.fits.append(super()._fit(linear))
        return self.fits[-1]


@pytest.mark.parametrize("name", ["blenderbot-400M-distill", "flan-t5-small"])
def test_sums_and_what_is_looked_at_are_as_large_as_real_ones(name):
    teacher = tiny.model(name)
    family, batch = family_of(teacher.config), tiny.batch(name, contexts=(9, 9), labels=(6, 6))
    student = build_student(family, student_config(teacher.config, HALF), None, 1, own_head=name in tiny.OWN_HEADS)
    watched, own = Watched(teacher, family), shape_of(student.config)
    with torch.no_grad():
        made = Recorded(student, watched, [batch], MAPS)
        made.done()
    held = sum(size(fit._start, fit._zz, fit._xz, fit.solved()[0]) for fit in made.fits)
    assert sums(shape_of(teacher.config), own) == pytest.approx(held, rel=0.1)  # biases add a row to sums
    (seen,) = watched.look([batch], made._used, watched.norms)
    read = size(*(tensor for one in (*seen.norms, *seen.linears) for tensor in (one.read, one.given)))
    positions = int(batch.context_mask.sum()), int(batch.label_mask.sum())
    assert looked_at(shape_of(teacher.config), own, *positions) == read


@pytest.mark.parametrize("placement", ["zero3", "replica"])
def test_a_plan_says_it_of_where_the_teacher_is_whole(root, placement):
    files = root / "ds_configs" / "zero2.json", root / "ds_configs" / "teacher_zero3.json"
    given = ["student.init=teacher_width", "student.width=1280", "student.heads=16", "student.ffn_width=5120"]
    given.append(f"teacher.placement={placement}")
    job = read_job(root / "recipes" / "bb3b_tinybert.yaml", given, 1, 8, *files, GPUS["h100"])
    found = host_memory(job)
    assert AT_ONCE == real._AT_ONCE
    if placement == "replica":
        assert found == {}
        looking = memory_before(job)["narrowing"]
        assert sum(memory(job).values()) < 30e9 < looking
        assert not fits(job, replace(GPUS["h100"], memory=32e9))
        assert remedies(job, replace(GPUS["h100"], memory=40e9))[0].startswith("teacher.placement: ")
    else:
        assert memory_before(job) == {}
        looking = found["narrowing (rank 0's node, before the first step)"]
    assert looking > 4 * job.teacher.parameters
