"""Layer maps: known answers, what holds for all depths, and what is refused. ParlAI's table is a golden test."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_engine.student.layer_map import LAYER_MAPS, resolve_layer_map

DEPTHS = st.integers(1, 48).flatmap(lambda teacher: st.tuples(st.just(teacher), st.integers(1, teacher)))


@pytest.mark.parametrize(
    ("name", "teacher", "student", "expected"),
    [
        ("parlai", 12, 2, (5, 11)),
        ("parlai", 24, 9, (1, 4, 7, 9, 12, 15, 17, 20, 23)),
        ("parlai", 15, 11, (0, 1, 3, 4, 5, 7, 8, 9, 11, 12, 13)),  # float rounding: not 14
        ("uniform", 15, 11, (0, 1, 3, 4, 5, 7, 8, 9, 11, 12, 14)),
        ("uniform", 12, 3, (3, 7, 11)),
        ("first_last", 12, 3, (0, 6, 11)),
        ("first_last", 12, 1, (11,)),
        ("first_last", 6, 2, (0, 5)),
        ("first", 12, 3, (0, 1, 2)),
        ([3, 3, 0], 4, 3, (3, 3, 0)),
        ((0, 1), 2, 2, (0, 1)),
    ],
)
def test_known_answers(name, teacher, student, expected):
    assert resolve_layer_map(name, teacher, student) == expected


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(sorted(LAYER_MAPS)), DEPTHS)
def test_every_map_is_increasing_and_inside_the_teacher(name, depths):
    teacher, student = depths
    layers = resolve_layer_map(name, teacher, student)
    assert len(layers) == student and all(0 <= layer < teacher for layer in layers)
    assert list(layers) == sorted(set(layers))
    if student == teacher:
        assert layers == tuple(range(teacher))
    if name in ("uniform", "first_last"):
        assert layers[-1] == teacher - 1
    if name == "first_last" and student > 1:
        assert layers[0] == 0


@pytest.mark.parametrize(
    ("choice", "teacher", "student", "message"),
    [
        ("unifrom", 4, 2, r"'unifrom' is unknown\. Choose one of parlai, uniform, first_last, first"),
        ("parlai", 4, 5, r"the student has 5 layers, the teacher only 4\. List"),
        ("first", 2, 3, r"the student has 3 layers, the teacher only 2"),
        ([0, 1], 4, 3, r"\[0, 1\] has 2 entries for 3 student layers"),
        ([0, 4], 4, 2, r"names teacher layer 4, but the teacher's layers are 0\.\.3"),
        ([-1, 0], 4, 2, r"names teacher layer -1"),
    ],
)
def test_refusals(choice, teacher, student, message):
    with pytest.raises(ValueError, match=message):
        resolve_layer_map(choice, teacher, student)


def test_a_deeper_student_may_list_layers_itself():
    assert resolve_layer_map([0, 0, 1, 1], 2, 4) == (0, 0, 1, 1)
