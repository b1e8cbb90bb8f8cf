"""The student of a recipe: its model, built whole and in this process, and the projections beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distill_engine.families.lookup import shape_of
from distill_engine.families.shape import Sizes
from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.models.classes import config_of
from distill_engine.models.fake_int8 import Switch, with_fake_int8
from distill_engine.models.loading import Checkpoint
from distill_engine.recipe.problem import Problem, RecipeError
from distill_engine.setup.prepare import Prepared
from distill_engine.student.build import TeacherLayers, build_student, fresh_config, student_config
from distill_engine.student.layer_map import resolve_layer_map
from distill_engine.student.projections import Projections, StudentModule
from distill_engine.values import Stack


def student_module(ready: Prepared, objective: Objective, say: Callable[[str], None]) -> StudentModule:
    """What is trained, with its initial weights; `say` is told what of the teacher's generation settings is another.

    Must be called before the teacher is loaded: nothing of its sharding can then leak into the student.
    """
    part, folder = ready.recipe.student, ready.teacher_folder
    config = _config(ready)
    init = None
    if folder is not None and part.init == "teacher_layers":
        init = TeacherLayers(Checkpoint(folder), layer_maps(ready), part.copy_final_norms)
    apart = folder is not None and Checkpoint(folder).own_head
    model = build_student(ready.family, config, init, ready.recipe.seed, own_head=apart)
    model.generation_config = ready.generation.config()
    model.config.decoder_start_token_id = ready.generation.values["decoder_start_token_id"]
    for note in ready.generation.notes:
        say(f"generation: {note}")
    if not part.train_position_tables:
        for table in filter(None, map(ready.family.position_table, Stack)):
            model.get_parameter(table).requires_grad_(False)
    if part.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    int8 = _int8(ready, model) if part.quantize else None
    adapter = adapt(model)
    if part.encoder_is_frozen:
        adapter.freeze_encoder()
    return StudentModule(adapter, _projections(ready, objective, config), int8)


def _int8(ready: Prepared, model: Any) -> Switch:
    tables = [stack.embedding for stack in ready.family.parts(model).stacks.values()]
    try:
        return with_fake_int8(model, tables)
    except ValueError as error:  # of a plugin's family: the built-in ones are made of linear layers
        fix = f"Remove it for {ready.family.name} students"
        raise RecipeError("the recipe", [Problem("student.quantize", "is int8", str(error), fix)]) from error


def by_stack(encoder: Any, decoder: Any) -> dict[Stack, Any]:
    """A setting of both stacks."""
    return {Stack.ENCODER: encoder, Stack.DECODER: decoder}


def _config(ready: Prepared) -> Any:
    sizes = ready.recipe.student.sizes
    if ready.teacher_folder is not None:
        return student_config(config_of(ready.teacher_folder), sizes)
    return fresh_config(ready.family, sizes, len(ready.tokenizer), ready.special)


def layer_maps(ready: Prepared) -> dict[Stack, tuple[int, ...]]:
    """Teacher layer that each student layer begins as."""
    teacher, part = ready.teacher_shape, ready.recipe.student
    assert teacher is not None
    own = teacher.resized(Sizes(part.encoder_layers, part.decoder_layers))
    return {
        stack: resolve_layer_map(choice, teacher.depth(stack), own.depth(stack))
        for stack, choice in by_stack(part.encoder_init_map, part.decoder_init_map).items()
    }


def _projections(ready: Prepared, objective: Objective, config: Any) -> Projections | None:
    teacher, width = ready.compared_shape, shape_of(config).width
    if teacher is None or not objective.weights.needs_teacher:
        return None
    if width == teacher.width and ready.recipe.student.projections == "auto":
        return None
    return Projections(objective.student_request(), width, teacher.width, ready.recipe.seed)
