"""Teacher folders as they are found, in each placement: the same teacher as plain transformers loads, or a refusal."""

from collections.abc import Iterator
from pathlib import Path

import teacher_folders as wild
import tiny_models as tiny
import torch
from engine_worker_bench import Bench, PlainTeacher
from torch import Tensor
from transformers import AutoConfig

from distill_engine.engine.teacher_weights import TeacherFilesError
from distill_engine.families.lookup import family_named
from distill_engine.families.shape import Sizes
from distill_engine.models.adapter import adapt
from distill_engine.models.loading import Checkpoint
from distill_engine.student.build import TeacherLayers, build_student, student_config
from distill_engine.values import FeatureRequest, Stack

HOMES = ("zero3", "node", "replica", "offload")
OTHERS = HOMES[1:]
FOUND = (
    ("tied, no key", "one file"),
    ("tied", "without prefix"),
    ("tied, all stored", "pickle"),
    ("tied, only the head stored", "shards"),
    ("tied, only the decoder's stored", "old pickle"),
    ("tied, no bias", "pickle with one storage"),
    ("untied", "one file beside old shards"),
    ("untied, no bias", "pickled shards"),
    ("untied, all alike", "named by the configuration"),
    ("untied, only the head differs", "one file beside a stale index"),
    ("untied, only the encoder's differs", "shards beside a pickle"),
)
# What is wrong -> whether config.json ties, the file that has it, and the change of what is stored.
WRONG = {
    "a tied head differs": (True, wild.WHOLE, lambda s: s | {wild.HEAD: s[wild.SHARED] + 1}),
    "a pickled layer too many": (
        True,
        wild.PICKLE,
        lambda s: s | {n.replace("layers.3.", "layers.4."): t for n, t in s.items() if ".decoder.layers.3." in n},
    ),
}


def found(bench: Bench) -> dict:
    """(family, tying, files, placement) -> largest differences of logits and of their factors from the plain model's,
    and the share of positions at which a student copied at full depth agrees with the teacher.

    Every folder under ZeRO-3, and in one of the other placements in turn."""
    return {
        (family, tying, files, home): differences
        for shift, family in enumerate(("blenderbot", "bart"))
        for number, (tying, files) in enumerate(FOUND, shift)
        for home, differences in _in_homes(bench, family, tying, files, ("zero3", OTHERS[number % len(OTHERS)]))
    }


def _in_homes(
    bench: Bench, family: str, tying: str, files: str, homes: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, float]]]:
    folder = bench.folder / "found" / f"{family} {tying} {files}"
    if bench.ranks.rank == 0:
        wild.make(folder, family, tying, files)
    bench.ranks.barrier()
    batch = tiny.batch(tiny.examples(4, family, seed=bench.ranks.rank), family)
    plain = PlainTeacher(folder).features(batch, FeatureRequest()).logits
    copied = adapt(_copied(folder, family).eval())
    with torch.no_grad():
        own = copied(batch, FeatureRequest()).logits
    for home in homes:
        teacher = bench.load_teacher(folder, placement=home)
        logits = teacher.features(batch, FeatureRequest()).logits
        factors = teacher.features(batch, FeatureRequest(logits=False, head=True)).head
        product = factors.hidden @ factors.embedding.T + (0 if factors.bias is None else factors.bias)
        if factors.masked_id is not None:
            product[..., factors.masked_id] = logits[..., factors.masked_id]
        yield (
            home,
            {
                "logits": _apart(logits, plain),
                "factors": _apart(product, plain),
                "agreement": (own.argmax(-1) == logits.argmax(-1)).float().mean().item(),
            },
        )


def _copied(folder: Path, family: str) -> torch.nn.Module:
    maps = {Stack.ENCODER: range(tiny.ENCODER_LAYERS), Stack.DECODER: range(tiny.DECODER_LAYERS)}
    config = student_config(AutoConfig.from_pretrained(folder), Sizes())
    return build_student(family_named(family), config, TeacherLayers(Checkpoint(folder), maps), seed=0)


def _apart(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def refused(bench: Bench) -> dict[tuple[str, str], str]:
    """(what is wrong, placement) -> what is said."""
    said = {}
    for name, (tied, file, change) in WRONG.items():
        folder = bench.folder / "refused" / name
        if bench.ranks.rank == 0:
            tiny.save_teacher(folder, "bart", tie_word_embeddings=tied)
            stored = wild.tensors_of(folder)
            (folder / wild.WHOLE).unlink()
            wild.put(folder, change(stored), file)
        bench.ranks.barrier()
        for home in HOMES:
            try:
                bench.load_teacher(folder, placement=home)
                said[name, home] = "loaded"
            except TeacherFilesError as error:
                said[name, home] = str(error)
    return said
