"""The student of a recipe: its model, built whole and in this process, and the projections beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig

from distill_engine.losses.objective import Objective
from distill_engine.models.adapter import adapt
from distill_engine.models.loading import Checkpoint
from distill_engine.setup.prepare import Prepared
from distill_engine.student.build import StudentSizes, TeacherLayers, build_student, fresh_config, student_config
from distill_engine.student.layer_map import resolve_layer_map
from distill_engine.student.projections import Projections, StudentModule
from distill_engine.values import Stack


def student_module(ready: Prepared, objective: Objective, say: Callable[[str], None]) -> StudentModule:
    """What is trained, with its initial weights; `say` is told what of the teacher's generation settings is another.

    Must be called before the teacher is loaded: nothing of its sharding can then leak into the student.
    """
    part, folder = ready.recipe.student, ready.teacher_folder
    config = _config(ready)
    init = _teacher_layers(ready, config) if folder is not None and part.init == "teacher_layers" else None
    model = build_student(ready.family, config, init, ready.recipe.seed)
    model.generation_config = ready.generation.config()
    model.config.decoder_start_token_id = ready.generation.values["decoder_start_token_id"]
    for note in ready.generation.notes:
        say(f"generation: {note}")
    if not part.train_position_tables:
        for stack in Stack:
            model.get_parameter(ready.family.position_table(stack)).requires_grad_(False)
    if part.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return StudentModule(adapt(model), _projections(ready, objective, config))


def by_stack(encoder: Any, decoder: Any) -> dict[Stack, Any]:
    """A setting of both stacks."""
    return {Stack.ENCODER: encoder, Stack.DECODER: decoder}


def _config(ready: Prepared) -> Any:
    part = ready.recipe.student
    sizes = StudentSizes(
        part.encoder_layers,
        part.decoder_layers,
        part.width,
        part.ffn_width,
        part.heads,
        part.positions,
        part.dropout,
        part.attention_dropout,
    )
    if ready.teacher_folder is not None:
        return student_config(AutoConfig.from_pretrained(ready.teacher_folder, trust_remote_code=False), sizes)
    layout = ready.layout
    special = {"pad": layout.pad_id, "start": layout.start_id, "end": layout.end_id}
    return fresh_config(ready.family, sizes, len(ready.tokenizer), special)


def _teacher_layers(ready: Prepared, config: Any) -> TeacherLayers:
    teacher, part = ready.teacher_config, ready.recipe.student
    assert teacher is not None and ready.teacher_folder is not None
    maps = {
        stack: resolve_layer_map(
            choice, int(teacher[f"{stack.value}_layers"]), getattr(config, f"{stack.value}_layers")
        )
        for stack, choice in by_stack(part.encoder_init_map, part.decoder_init_map).items()
    }
    return TeacherLayers(Checkpoint(ready.teacher_folder), maps, part.copy_final_norms)


def _projections(ready: Prepared, objective: Objective, config: Any) -> Projections | None:
    teacher = ready.teacher_config
    if teacher is None or not objective.weights.needs_teacher:
        return None
    if config.d_model == teacher["d_model"] and ready.recipe.student.projections == "auto":
        return None
    return Projections(objective.student_request(), config.d_model, int(teacher["d_model"]), ready.recipe.seed)
