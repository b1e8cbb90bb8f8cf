"""Every family, copied and narrow: a teacher under ZeRO-3, a student under ZeRO-2, resumed, exported."""

from pathlib import Path

import tiny_families as tiny
import torch
from engine_worker_bench import ADAM, DS_CONFIGS, Bench, weights

from distill_engine.data.tokens.tokenize import load_tokenizer
from distill_engine.evaluate.generate import generate_ids, own_settings
from distill_engine.export.hf import host_model, probe_of, write_student
from distill_engine.families.lookup import family_of, shape_of
from distill_engine.families.shape import Sizes
from distill_engine.losses.config import DecoderWeights, LossWeights
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.models.generation_settings import Decoder, settle_student
from distill_engine.models.loading import Checkpoint
from distill_engine.models.own_settings import read_settings
from distill_engine.student.build import TeacherLayers, build_student, student_config
from distill_engine.student.projections import Projections, StudentModule
from distill_engine.values import FeatureRequest, Stack

TOKENIZER = DS_CONFIGS.parent / "recipes" / "demo" / "tokenizer"  # exported with each student, and not used
MAPS = {Stack.ENCODER: (0, 2), Stack.DECODER: (2,)}
SIZES = {
    "copied": Sizes(encoder_layers=2, decoder_layers=1, dropout=0.0),
    "narrow": Sizes(encoder_layers=2, decoder_layers=1, width=8, ffn_width=20, heads=2, dropout=0.0),
}
NEW_TOKENS = 6
SHARED = "whisper-large-v3"


def matrix(bench: Bench) -> dict:
    """(published model, way) -> what was found; on rank 0 with the ids that the student generates."""
    return {(name, way): found for name in tiny.PUBLISHED for way, found in _family(bench, name).items()}


def _family(bench: Bench, name: str) -> dict[str, dict]:
    folder = bench.folder / "families" / name
    if bench.ranks.rank == 0:
        tiny.save(name, folder)
    bench.ranks.barrier()
    teacher = bench.load_teacher(folder)
    batch = tiny.batch(name, seed=bench.ranks.rank)
    plain = adapt(Checkpoint(folder).load(torch.float32).eval())
    with torch.no_grad():
        apart = plain(batch, FeatureRequest()).logits - teacher.features(batch, FeatureRequest()).logits
    apart = float(apart.abs().max())
    return {way: {"teacher": apart, **_student(bench, name, folder, teacher, way)} for way in SIZES}


def _student(bench: Bench, name: str, folder: Path, teacher, way: str) -> dict:
    goal = Objective(LossWeights(**dict.fromkeys(LossWeights.fields(), 1.0)), MAPS)
    module = _module(folder, goal, way)
    engine = bench.student(module, bench.student_ds(), ADAM)
    groups = [[tiny.batch(name, seed=10 * step + bench.ranks.rank)] for step in range(3)]
    losses = [bench.take_step(engine, teacher, goal, group, 1e-2)[0] for group in groups[:2]]
    place = bench.folder / "families" / f"{name} {way}"
    saved = place / "checkpoint"
    if bench.ranks.rank == 0:
        saved.mkdir(parents=True)
    bench.ranks.barrier()
    engine.save(saved)
    bench.ranks.barrier()
    losses.append(bench.take_step(engine, teacher, goal, groups[2], 1e-2)[0])
    straight = weights(engine.module)
    engine.load(saved)
    again = bench.take_step(engine, teacher, goal, groups[2], 1e-2)[0]
    found = {"losses": losses, "again": again, "resumed": torch.equal(straight, weights(engine.module))}
    if bench.ranks.rank == 0:
        model = engine.module.model.eval()
        twin = host_model(model)
        found["twin"] = all(torch.equal(t, twin.state_dict()[n]) for n, t in model.state_dict().items())
        write_student(model, load_tokenizer(str(TOKENIZER)), place / "export", "", probe_of(model))
        inputs = tiny.batch(name, seed=5).inputs
        settings = own_settings(model, NEW_TOKENS)
        found["ids"] = generate_ids(model, inputs, settings)
        found["export"] = str(place / "export")
    return found


def shared(bench: Bench) -> dict:
    """placement -> a frozen encoder that student and teacher have together; against two models with one each."""
    folder = bench.folder / "families" / SHARED
    if bench.ranks.rank == 0:
        tiny.save(SHARED, folder)
    bench.ranks.barrier()
    return {placement: _shared(bench, folder, placement) for placement in ("zero3", "replica")}


def _shared(bench: Bench, folder: Path, placement) -> dict:
    weights_of = DecoderWeights(dict.fromkeys(LossWeights.fields(), 1.0) | {"encoder": 0.0})
    goal = Objective(weights_of, {Stack.ENCODER: (), Stack.DECODER: (2,)}, temperature=2.0)
    teacher = bench.load_teacher(folder, placement=placement)
    plain = [adapt(_whole_encoder(folder)).eval(), adapt(Checkpoint(folder).load(torch.float32)).eval()]
    adapter = adapt(_whole_encoder(folder))
    adapter.freeze_encoder()
    engine = bench.student(StudentModule(adapter, None), bench.student_ds(accumulation=2), ADAM)
    teacher.share_encoder(engine.module.model)
    runs = []
    for model in (engine.module.model, teacher.model):
        model.get_encoder().register_forward_pre_hook(lambda *_: runs.append(1))
    steps = [[tiny.batch(SHARED, seed=10 * n + m + bench.ranks.rank) for m in (0, 5)] for n in range(3)]
    apart = torch.zeros(())
    for batch, divisor in zip(steps[0], goal.divisors(steps[0], bench.ranks.sum, 2), strict=True):
        with torch.no_grad():
            student, teachers = (one(batch, ask()) for one, ask in zip(
                plain, (goal.student_request, goal.teacher_request), strict=True))  # fmt: skip
            apart += goal.total(goal.terms(student, teachers, batch), divisor)
    losses, place = [], bench.folder / "families" / f"shared {placement}"
    for number, group in enumerate(steps):
        if number == 2:
            if bench.ranks.rank == 0:
                place.mkdir(parents=True)
            bench.ranks.barrier()
            engine.save(place)
            bench.ranks.barrier()
        losses.append(bench.take_step(engine, teacher, goal, [engine.encoded(one) for one in group], 1e-2)[0])
    straight = weights(engine.module)
    engine.load(place)
    group = [engine.encoded(one) for one in steps[2]]
    again = bench.take_step(engine, teacher, goal, group, 1e-2)[0]
    mine, theirs = engine.module.model.state_dict(), Checkpoint(folder).load(torch.float32).state_dict()
    encoder = [name for name in mine if ".encoder." in name]
    held = engine.module.model.get_encoder().conv1.weight
    return {
        "apart": float(bench.ranks.sum(apart)), "losses": losses, "again": again, "runs": len(runs),
        "resumed": torch.equal(straight, weights(engine.module)),
        "kept": bool(encoder) and all(torch.equal(mine[name], theirs[name]) for name in encoder),
        "one_copy": teacher.model.get_encoder().conv1.weight.data_ptr() == held.data_ptr(),
        "trained": sum(p.numel() for group in engine._optimizer.bit16_groups for p in group),
        "decoder": sum(p.numel() for p in engine.module.model.model.decoder.parameters()),
    }  # fmt: skip


def _whole_encoder(folder: Path):
    checkpoint = Checkpoint(folder)
    init = TeacherLayers(checkpoint, {Stack.ENCODER: range(tiny.ENCODER_LAYERS), Stack.DECODER: (2,)})
    return build_student(
        family_of(checkpoint.config), student_config(checkpoint.config, Sizes(decoder_layers=1)), init, 1
    )


def _module(folder: Path, goal: Objective, way: str) -> StudentModule:
    checkpoint = Checkpoint(folder)
    config = student_config(checkpoint.config, SIZES[way])
    init = TeacherLayers(checkpoint, MAPS) if way == "copied" else None
    model = build_student(family_of(config), config, init, 1, own_head=checkpoint.own_head)
    own = read_settings(folder)
    settled = settle_student(own, Decoder.of(checkpoint.config, own.config), NEW_TOKENS)
    model.generation_config = settled.config()
    model.config.decoder_start_token_id = settled.values["decoder_start_token_id"]
    width, theirs = shape_of(config).width, shape_of(checkpoint.config).width
    projections = None if width == theirs else Projections(goal.student_request(), width, theirs, 1)
    return StudentModule(adapt(model), projections)
