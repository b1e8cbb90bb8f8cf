"""The table of flags: every recipe key in it exists, every flag without equivalent has a reason."""

from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from distill_engine.interop.parlai.options.errors import ParlaiError
from distill_engine.interop.parlai.options.flag import KINDS
from distill_engine.interop.parlai.options.flags import BY_OPTION, BY_SPELLING, FLAGS, default_options
from distill_engine.recipe.explain import fields_of
from distill_engine.recipe.schema import Recipe


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone, optional or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := section_in(one))), None)


def exists(key: str) -> bool:
    model: type[BaseModel] | None = Recipe
    for part in key.split("."):
        if part == "N":
            continue
        if model is None or part not in fields_of(model):
            return False
        model = section_in(fields_of(model)[part].annotation)
    return True


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_a_flag_has_a_recipe_key_or_a_reason(flag):
    assert flag.kind in KINDS and (flag.here or flag.why)
    assert [key for key in flag.here.split() if not exists(key)] == []


def test_spellings_and_names_are_unique():
    assert len(BY_OPTION) == len(FLAGS) and len(BY_SPELLING) == sum(1 + len(flag.short) for flag in FLAGS)
    assert get_origin(list[int]) is list and exists("data.datasets.N.weight") and not exists("data.datasets.N.wieght")


def test_values_are_of_their_kind():
    flags = BY_OPTION
    assert flags["fp16"].value("T") is True and flags["fp16"].value("no") is False
    assert flags["betas"].value("0.9,0.99") == [0.9, 0.99] and flags["multitask_weights"].value("stochastic")
    assert flags["init_model"].value("None") is None and flags["learningrate"].value("1e-4") == 1e-4
    for option, text, said in (("fp16", "maybe", "true or false"), ("batchsize", "1.5", "a whole number")):
        with pytest.raises(ParlaiError, match=f"{text}'; it takes {said}"):
            flags[option].value(text)


def test_defaults_are_those_of_a_saved_opt():
    options = default_options()
    assert (options["optimizer"], options["learningrate"], options["gradient_clip"]) == ("sgd", 1.0, 0.1)
    assert (options["delimiter"], options["variant"], options["validation_patience"]) == ("\n", "aiayn", 10)
    assert "teacher_model" not in options and "datapath" not in options
