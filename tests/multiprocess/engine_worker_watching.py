"""Watching over real ranks and engines: gradient norms per term, sample replies by one rank while the others wait."""

from pathlib import Path
from typing import Any

import tiny_models as tiny
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from engine_worker_bench import ADAM, Bench, PlainTeacher, digest, rank_groups
from engine_worker_trainer import make_trainer, story

from distill_engine.evaluate.generate import generate_ids, own_settings
from distill_engine.evaluate.samples import answers, recipe_prompts
from distill_engine.evaluate.teacher_replies import FILE, teacher_replies
from distill_engine.recipe.load import load_recipe
from distill_engine.setup.prepare import prepare
from distill_engine.train.balance import GradientAlignment, GradientNorm, InitialScale
from distill_engine.train.balancing import by_gradient, by_value
from distill_engine.train.hooks import AtValidation
from distill_engine.train.term_gradients import TermGradients

FAMILY, MICRO_BATCHES, STEPS = "blenderbot", 2, 3
DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"


def gradient_norms(bench: Bench) -> dict:
    """Three steps of two micro-batches, measured and not; the first norms, and what plain PyTorch makes of them."""
    found: dict[str, Any] = {name: _steps(bench, precision, every) for name, (precision, every) in WAYS.items()}
    found["plain"] = _plain(bench)
    return found


WAYS = {"fp32": ("fp32", 0), "fp32 measured": ("fp32", 1), "bf16": ("bf16", 0), "bf16 measured": ("bf16", 1)}
FILES = {"fp32": "zero2_fp32.json", "bf16": "zero2_bf16.json"}


def _steps(bench: Bench, precision: str, every: int) -> dict:
    goal = tiny.objective()
    module = tiny.student(bench.teachers / FAMILY, goal)
    student = bench.student(module, bench.student_ds(FILES[precision], accumulation=MICRO_BATCHES, clip=1.0), ADAM)
    gradients = None
    if every:
        gradients = TermGradients(goal, student.module, every, lambda: student.loss_scale, bench.ranks.device)
    teacher = bench.teacher(FAMILY, precision)
    measured = []
    for attempt, group in enumerate(_groups(bench)):
        if gradients is not None:
            divisor = goal.divisors(group, bench.ranks.sum, bench.ranks.world_size)[0]
            teacher_features = teacher.features(group[0], goal.teacher_request())
            gradients.measure(attempt, group[0], teacher_features, divisor, bench.ranks.sum)
            measured.append(gradients.read())
        bench.take_step(student, teacher, goal, group, 1e-3)
    return {"digest": digest(module), "measured": measured}


def _groups(bench: Bench) -> list:
    return rank_groups(7, bench.ranks, MICRO_BATCHES, STEPS)


def _plain(bench: Bench) -> dict[str, float]:
    """Norms of the first micro-batches of all ranks together, by ordinary backward passes on this rank alone."""
    goal = tiny.objective()
    module = tiny.student(bench.teachers / FAMILY, goal).train()
    teacher = PlainTeacher(bench.teachers / FAMILY)
    everyone: list[list] = bench.ranks.gather(_groups(bench)[0])
    divisor = torch.stack([goal.counts(batch) for group in everyone for batch in group]).sum(dim=0)
    norms = {}
    for term in goal.term_weights:
        module.zero_grad()
        for group in everyone:
            student_features, _ = module(group[0], goal.student_request())
            terms = goal.terms(student_features, teacher.features(group[0], goal.teacher_request()), group[0])
            goal.weighted(terms, divisor)[term].backward()
        gradients = [p.grad.flatten() for p in module.model.parameters() if p.grad is not None]
        norms[f"train/gradient_norm/{term}"] = float(torch.cat(gradients).norm())
    return norms


def samples(bench: Bench) -> dict:
    """A run whose first rank generates at every validation, and the same run without."""
    calm = story(make_trainer(bench, "unsampled", bench.student_ds()))
    trainer = make_trainer(bench, "sampled", bench.student_ds())
    said = []

    def generate(step: int, seconds: float) -> dict[str, float]:
        model = trainer.student.module.model
        assert not model.training
        context = tiny.batch(tiny.examples(3, FAMILY), FAMILY)
        settings = own_settings(model, 6, {"num_beams": 2})
        said.append((step, generate_ids(model, context.inputs, settings).tolist()))
        return {"sample/length": float(step)}

    if bench.ranks.rank == 0:
        trainer.hooks.each.append(AtValidation(generate))
    return {"calm": calm, "sampled": story(trainer), "said": said}


def teacher_samples(bench: Bench) -> dict:
    """The sharded teacher's replies with its own beams: against the plain model's, and what they leave behind."""
    small = ["data.datasets.0.train_examples=8", "data.datasets.0.valid_examples=12", "validation.samples=4"]
    ready = prepare(load_recipe(DEMO, [*small, f"data.cache_dir={bench.folder / 'cache'}"]), DEMO)
    prompts = recipe_prompts(ready)
    plain, teacher = PlainTeacher(ready.teacher_folder), bench.load_teacher(ready.teacher_folder)
    for model in (plain.model, teacher.model):
        model.generation_config.num_beams = 3
    goal = tiny.objective()
    batch = tiny.batch(tiny.examples(4, FAMILY, seed=bench.ranks.rank), FAMILY)
    before = teacher.features(batch, goal.teacher_request()).logits
    folder, said = bench.folder / "teacher_samples", []
    folder.mkdir(exist_ok=True)
    found = teacher_replies(ready, teacher.model, prompts, folder, bench.ranks, said.append)
    gathered = [n for n, p in teacher.model.named_parameters() if p.ds_status != ZeroParamStatus.NOT_AVAILABLE]
    after = [teacher.features(batch, goal.teacher_request()).logits for _ in range(3)]
    settings = own_settings(plain.model, ready.recipe.data.label_tokens)
    bench.ranks.barrier()
    again = teacher_replies(ready, teacher.model, prompts, folder, bench.ranks, said.append)
    # ranks whose replies have different lengths: the longer one needs the other to the end
    own = [prompts[0][bench.ranks.rank : bench.ranks.rank + 1]]
    limits = {"max_new_tokens": 3 + 9 * bench.ranks.rank, "min_new_tokens": 3 + 9 * bench.ranks.rank}
    uneven = answers(ready, teacher.model, own, settings | limits | {"synced_gpus": True})
    return {
        "found": found,
        "wanted": [one.text for one in answers(ready, plain.model, prompts, settings)],
        "again": again,
        "said": said,
        "kept": (folder / FILE).is_file(),
        "gathered": gathered,
        "same_after": all(torch.equal(before, one) for one in after),
        "tokens": [one.tokens for one in uneven],
        "uneven": [one.text for one in uneven],
        "uneven_wanted": [one.text for one in answers(ready, plain.model, own, settings | limits)],
    }


def balanced(bench: Bench) -> dict:
    """Factors at two attempts with a step between them, of the same four examples on any number of ranks."""
    ranks, examples = bench.ranks, tiny.examples(4, FAMILY)
    batch = tiny.batch(examples[ranks.rank :: ranks.world_size], FAMILY)
    found = {}
    for method in ("initial_scale", "gradient_norm", "gradient_alignment"):
        goal = tiny.objective()
        student = bench.student(tiny.student(bench.teachers / FAMILY, goal), bench.student_ds(clip=1.0), ADAM)
        teacher, terms = bench.teacher(FAMILY), tuple(goal.term_weights)
        if method == "initial_scale":
            balancer = by_value(InitialScale(terms, 2, 1e9), goal, student.module, ranks)
        else:
            aligned = method == "gradient_alignment"
            gradients = TermGradients(goal, student.module, None, lambda: 1.0, ranks.device)
            settings = (1, 0.5, 1e9)
            policy = GradientAlignment(goal.term_weights, *settings) if aligned else GradientNorm(terms, *settings)
            reference = "prediction" if aligned else None
            balancer = by_gradient(policy, goal, gradients, ranks, reference)
        divisor = goal.divisors([batch], ranks.sum, ranks.world_size)[0]
        found[method] = []
        for attempt in range(2):
            balancer.before_backward(attempt, batch, teacher.features(batch, goal.teacher_request()), divisor)
            found[method].append(balancer.factors)
            bench.take_step(student, teacher, goal, [batch], 1e-3)
    return found
