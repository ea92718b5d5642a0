"""Values that a search draws for the method's fields, and what the method refuses of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import (
    Discriminator,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    model_validator,
)

from orchestrator.spec_block import Block, PlacedErrors, errors_of, field_errors, rule
from orchestrator.spec_method import MethodSpec, merge_method

SELECTING = {"include", "exclude", "embeddings"}
"""What decides which matrices are compressed."""
SEARCHABLE = sorted(set(MethodSpec.model_fields) - {"kind", "density"} - SELECTING)
CHANGEABLE = ["kind", *SEARCHABLE]
"""Not the selection: methods that compress different matrices do not compare."""


class Distribution(Block):
    """A continuous range to draw from."""

    log_uniform: tuple[float, float] | None = None
    uniform: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _valid(self) -> Distribution:
        if (self.log_uniform is None) == (self.uniform is None):
            raise ValueError("exactly one of `log_uniform` and `uniform` must be given")
        low, high = self.log_uniform or self.uniform or (0.0, 0.0)
        if not low < high or (self.log_uniform and low <= 0):
            raise ValueError(f"low < high must hold, and 0 < low if logarithmic: [{low}, {high}]")
        return self


def choice_kind(value: Any) -> str | None:
    if isinstance(value, dict | Distribution):
        return "range"
    return "values" if isinstance(value, list) else None


def setting_kind(value: Any) -> str:
    return choice_kind(value) or "value"


_Range = Annotated[Distribution, Tag("range")]
_Values = Annotated[list[StrictFloat | StrictInt | StrictStr], Tag("values")]
_Value = Annotated[StrictBool | StrictFloat | StrictInt | StrictStr | None, Tag("value")]

Choice = Annotated[_Range | _Values, Discriminator(choice_kind)]
"""A list of values to choose from, or a range to draw from."""
Setting = Annotated[_Range | _Values | _Value, Discriminator(setting_kind)]
"""A choice, or the one value that a method has."""


def bad_values(
    name: str, choice: Distribution | list[Any], method: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """What the method would refuse: better known now than in the hundredth trial."""
    if name not in SEARCHABLE:
        yield rule((name,), f"is not a searchable field of the method: {', '.join(SEARCHABLE)}")
        return
    where: tuple[str, ...] = (name,)
    if isinstance(choice, list):
        values = choice
        if not values:
            yield rule(where, "needs at least one value")
    else:
        where += ("log_uniform" if choice.log_uniform else "uniform",)
        values = list(choice.log_uniform or choice.uniform or ())
    for index, value in enumerate(values):
        yield from refused(name, value, (*where, index), method)


def refused(
    name: str, value: Any, where: tuple[str | int, ...], method: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """What a field refuses of a value by itself, or the whole of `method` with this value in it."""
    if method is None:
        found = field_errors(MethodSpec, {name: value})
    else:
        found = errors_of(MethodSpec, merge_method(method, {name: value}))
    return ({**error, "loc": where, "field": name} for error in found)


def within(place: tuple[str | int, ...], errors: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors of the method's fields, at places below `place`."""
    cause = PlacedErrors(errors, MethodSpec)
    return rule(place, str(cause)) | {"type": "value_error", "ctx": {"error": cause}}
