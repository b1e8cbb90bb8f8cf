"""What all sections of a recipe share: their base and the ranges of their numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from distill_engine.recipe.problem import did_you_mean
from distill_engine.registry import names

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """Base of every section: read-only, and no key that we do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def name_of(seam: str) -> AfterValidator:
    """Lets a field hold only names that are registered."""

    def check(name: str) -> str:
        known = names(seam)
        if name not in known:
            close = did_you_mean(name, known)
            said = f"it should be one of: {', '.join(known)}" + (f". {close}" if close else "")
            raise PydanticCustomError("unknown_name", "{said}", {"said": said})
        return name

    return AfterValidator(check)
