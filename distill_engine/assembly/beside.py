"""What goes on beside the steps of a run, and what it decides by, as its recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distill_engine.engine.distributed import Ranks
from distill_engine.engine.student import StudentEngine
from distill_engine.engine.teacher import TeacherEngine
from distill_engine.evaluate.validation import Validation, Validator, as_read
from distill_engine.losses.objective import Objective
from distill_engine.recipe.quantize_rules import quantized_from
from distill_engine.recipe.schema import Recipe
from distill_engine.setup.prepare import Prepared
from distill_engine.setup.training_data import validation_loader
from distill_engine.teachers.protocol import Teacher
from distill_engine.telemetry.averages import Averages
from distill_engine.telemetry.sinks import SinkGroup
from distill_engine.train.balance import GradientAlignment, GradientNorm, InitialScale, reference_of
from distill_engine.train.balancing import Balancer, LossTerms, by_gradient, by_value
from distill_engine.train.decisions import Policies
from distill_engine.train.fade import Fade
from distill_engine.train.hooks import Turn
from distill_engine.train.learning_rate import LearningRate, Plateau, Warmup
from distill_engine.train.meter import Meter
from distill_engine.train.nonfinite import Layered, LayerSearch
from distill_engine.train.policies import EarlyStopping, Every, KeepBest
from distill_engine.train.roles import Batches
from distill_engine.train.step_metrics import StepMetrics
from distill_engine.train.term_gradients import TermGradients


def step_metrics(
    recipe: Recipe,
    objective: Objective,
    terms: LossTerms,
    batches: Batches,
    student: StudentEngine,
    teacher: Teacher | None,
    ranks: Ranks,
    sinks: SinkGroup,
) -> StepMetrics:
    """What is logged of steps."""
    samples = recipe.rollout.source != "gold"
    meter = Meter(objective, Averages(ranks.device), ranks.world_size, terms.factors, samples=samples)
    models: dict[str, Layered] = {"student": student}
    if teacher is not None and isinstance(teacher.engine, TeacherEngine):
        models = {"teacher": teacher.engine, **models}
    search = LayerSearch(models, ranks)
    return StepMetrics(meter, batches, ranks, sinks, recipe.stop.max_skipped_steps, student.advice, search)


def validation(
    ready: Prepared,
    objective: Objective,
    terms: LossTerms,
    student: StudentEngine,
    teacher: Teacher | None,
    ranks: Ranks,
    sinks: SinkGroup,
    beat: Callable[[str], None],
) -> Validation:
    """The teacher-forced numbers."""
    average, batches = ready.recipe.validation.average, validation_loader(ready, ranks)
    encoded = student.encoded if ready.recipe.student.share_encoder else as_read
    validator = Validator(batches, objective, ready.valid_labels, ranks, average, terms.factors, encoded)
    return Validation(validator, student, teacher, sinks, beat)


def loss_terms(recipe: Recipe, objective: Objective, student: StudentEngine, ranks: Ranks) -> LossTerms:
    """What measures loss terms at times: for the log, and to balance their weights."""
    losses, terms = recipe.losses, tuple(objective.term_weights)
    every = recipe.logging.gradient_norm_every_steps or None
    gradients = TermGradients(objective, student.module, every, lambda: student.loss_scale, ranks.device)
    settings = (losses.balance_every_steps, losses.balance_smoothing, losses.balance_limit)
    if losses.balance == "gradient_norm":
        return LossTerms(by_gradient(GradientNorm(terms, *settings), objective, gradients, ranks), gradients, ranks)
    if losses.balance == "gradient_alignment":
        policy = GradientAlignment(objective.term_weights, *settings)
        return LossTerms(by_gradient(policy, objective, gradients, ranks, reference_of(terms)), gradients, ranks)
    balancer: Balancer | None = None
    if losses.balance == "initial_scale":
        start = InitialScale(terms, losses.balance_start_steps, losses.balance_limit)
        balancer = by_value(start, objective, student.module, ranks)
    fading = {term.name: term.operand != "logits" for term in objective.terms_used}
    fade = None if losses.feature_steps is None else Fade(fading, losses.feature_steps)
    return LossTerms(balancer, gradients if every else None, ranks, fade)


def turns(recipe: Recipe, sinks: SinkGroup) -> Iterator[Turn]:
    """Where passes become int8's: told at each start, and recorded where it is."""
    begins = quantized_from(recipe)
    if begins is None:
        return
    text = "validation measures int8, and the best student is chosen anew, among those trained for it"
    sinks.message(f"int8: steps {begins + 1} to {recipe.stop.max_steps} round as int8 exports do; from then on {text}")
    yield Turn(begins, lambda step, seconds: sinks.record("event", step, seconds, {}, f"int8 from here on: {text}"))


def policies_of(recipe: Recipe, *, validates: bool) -> Policies:
    """Every decision of the run; `validates`: there is something to validate on."""
    schedule, when, stop, save = recipe.schedule, recipe.validation, recipe.stop, recipe.checkpoint
    return Policies(
        learning_rate=LearningRate(
            schedule.name,
            recipe.optimizer.learning_rate,
            warmup=Warmup(schedule.warmup_steps, schedule.warmup_start),
            total_steps=schedule.total_steps or stop.max_steps,
            final_share=schedule.final_share,
            plateau=Plateau(schedule.decay, schedule.patience, schedule.threshold),
        ),
        keep_best=KeepBest(when.better),
        early_stopping=EarlyStopping(when.patience, when.better, when.stop_at),
        log_when=Every(steps=recipe.logging.every_steps),
        validate_when=Every(when.every_steps, when.every_epochs, when.every_seconds),
        save_when=Every(steps=save.every_steps, seconds=save.every_seconds),
        limits=stop,
        metric=when.metric,
        background_saves=save.background,
        validates=validates,
        save_after_validation=when.save_after_validation,
        quantized_from=quantized_from(recipe),
    )
