"""Which teacher layer initialises or supervises which student layer.

A map is a list: entry i is the 0-based teacher layer of student layer i. Initialisation and supervision each have
their own map; both choose from one registry, or list the layers themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def parlai(teacher_layers: int, student_layers: int) -> list[int]:
    """ParlAI's formula, int((i + 1) * (T / S)) - 1, in floating point as ParlAI computes it.

    Ends at the last teacher layer for most depths; float rounding matters (15 -> 11 ends at layer 13).
    """
    return [int((i + 1) * (teacher_layers / student_layers)) - 1 for i in range(student_layers)]


def uniform(teacher_layers: int, student_layers: int) -> list[int]:
    """The same spacing in exact integer arithmetic: floor((i + 1) * T / S) - 1; always ends at the last layer."""
    return [(i + 1) * teacher_layers // student_layers - 1 for i in range(student_layers)]


def first_last(teacher_layers: int, student_layers: int) -> list[int]:
    """Evenly spaced from the first to the last layer, both kept; one layer alone is the last."""
    if student_layers == 1:
        return [teacher_layers - 1]
    step = (teacher_layers - 1) / (student_layers - 1)
    return [int(i * step + 0.5) for i in range(student_layers)]


def first(teacher_layers: int, student_layers: int) -> list[int]:
    """The first layers, in order."""
    del teacher_layers
    return list(range(student_layers))


LAYER_MAPS: dict[str, Callable[[int, int], list[int]]] = {
    "parlai": parlai,
    "uniform": uniform,
    "first_last": first_last,
    "first": first,
}


def resolve_layer_map(choice: str | Sequence[int], teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """The map for a registry name or an explicit list.

    Raises ValueError for an unknown name, a student deeper than the teacher (by name), a list of another length
    than the student's depth, or a layer the teacher does not have.
    """
    if isinstance(choice, str):
        if choice not in LAYER_MAPS:
            raise ValueError(f"layer map {choice!r} is unknown. Choose one of {', '.join(LAYER_MAPS)}, or list layers.")
        if student_layers > teacher_layers:
            raise ValueError(
                f"layer map {choice!r}: the student has {student_layers} layers, the teacher only {teacher_layers}. "
                "List the teacher layer of each student layer explicitly, or make the student shallower."
            )
        return tuple(LAYER_MAPS[choice](teacher_layers, student_layers))
    if len(choice) != student_layers:
        raise ValueError(
            f"layer map {list(choice)} has {len(choice)} entries for {student_layers} student layers. "
            "Give one 0-based teacher layer per student layer."
        )
    outside = [layer for layer in choice if not 0 <= layer < teacher_layers]
    if outside:
        raise ValueError(
            f"layer map {list(choice)} names teacher layer {outside[0]}, but the teacher's layers are "
            f"0..{teacher_layers - 1}."
        )
    return tuple(choice)
