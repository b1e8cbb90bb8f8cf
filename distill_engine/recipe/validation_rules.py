"""Rules about validation: something triggers it, and what it and checkpoints decide by is measured."""

from __future__ import annotations

from collections.abc import Iterator

from distill_engine.metrics.named import POOLED, better, text_metrics, token_metrics
from distill_engine.metrics.replies import TOKENS
from distill_engine.recipe.problem import Problem, did_you_mean
from distill_engine.recipe.schema import Recipe
from distill_engine.registry import names


def validates(recipe: Recipe) -> bool:
    """Whether anything triggers a validation."""
    triggers = recipe.validation
    return any((triggers.every_steps, triggers.every_epochs, triggers.every_seconds))


def metric_is_measured(recipe: Recipe) -> Iterator[Problem]:
    """Whatever waits for a validation metric needs validations."""
    waiting = {
        "schedule.name": ("reduce_on_plateau", recipe.schedule.name == "reduce_on_plateau"),
        "validation.patience": (recipe.validation.patience, recipe.validation.patience is not None),
        "validation.stop_at": (recipe.validation.stop_at, recipe.validation.stop_at is not None),
    }
    for path, (value, waits) in waiting.items():
        if waits and not validates(recipe):
            yield Problem(
                path,
                f"is {value}, but no validation ever runs",
                "It acts on the metric of validations",
                "Set validation.every_steps, every_epochs or every_seconds"
                + ("" if path == "schedule.name" else f", or {path}: null"),
            )


def metric_is_known(recipe: Recipe) -> Iterator[Problem]:
    """A name that validation does not produce would end the run at the first validation."""
    validation = recipe.validation
    metric, texts = validation.metric, [*(one.name for one in text_metrics()), TOKENS]
    measured = [one.name for one in token_metrics() if one.needs != "divergence"]
    measured += texts if validation.generate_examples else []
    overall = [*measured, POOLED, "total"]
    if not validates(recipe) or metric.startswith("term/") or metric in overall:
        return
    if metric.rsplit("/", 1)[-1] in texts and not validation.generate_examples:
        what = f"is {metric!r}, a metric of generated replies, and validation.generate_examples is 0"
        yield Problem("validation.metric", what, fix="Set validation.generate_examples: 64, say, or another metric")
        return
    lacking = next((one.missing() for one in text_metrics() if one.name == metric.rsplit("/", 1)[-1]), "")
    if lacking:
        yield Problem("validation.metric", f"is {metric!r}, which {lacking}")
        return
    labels = [source.title for source in recipe.data.datasets]
    of_dataset = [f"{label}/{name}" for label in labels for name in measured]
    if metric not in of_dataset:
        rule = f"Metrics are: {', '.join(overall)}; and of one dataset, such as {of_dataset[0]}"
        close = did_you_mean(metric, [*overall, *texts, *of_dataset])
        yield Problem("validation.metric", f"is {metric!r}, which validation does not measure", rule, close)


def direction_fits_metric(recipe: Recipe) -> Iterator[Problem]:
    """A known metric is not optimised the wrong way round, and one that says nothing about it not at random."""
    metric, direction = recipe.validation.metric, recipe.validation.direction
    right = better(metric)
    if direction is not None and right not in ("neither", direction):
        what = f"is {direction}, but {metric} (validation.metric) is better when it is {right}imal"
        yield Problem("validation.direction", what, fix=f"Set validation.direction: {right}, or leave it out")
    if direction is None and right == "neither" and metric.rsplit("/", 1)[-1] in (*names("metrics"), TOKENS):
        what = f"is null, but {metric} (validation.metric) is neither better when it is minimal nor when maximal"
        yield Problem("validation.direction", what, fix="Set validation.direction: min or max, or another metric")


def best_checkpoints_are_measured(recipe: Recipe) -> Iterator[Problem]:
    """checkpoint.keep_best ranks checkpoints that were written right after a validation."""
    wanted = recipe.checkpoint.keep_best
    if wanted == 0:
        return
    if not validates(recipe):
        yield Problem(
            "checkpoint.keep_best",
            f"is {wanted}, but no validation ever runs",
            "It acts on the metric of validations",
            "Set validation.every_steps, every_epochs or every_seconds, or remove it",
        )
    elif not recipe.validation.save_after_validation:
        yield Problem(
            "checkpoint.keep_best",
            f"is {wanted}, but validation.save_after_validation is false",
            "Only a checkpoint that is written right after a validation can be one of the best",
            "Set validation.save_after_validation: true, or remove it",
        )


VALIDATION_RULES = (metric_is_measured, metric_is_known, direction_fits_metric, best_checkpoints_are_measured)
