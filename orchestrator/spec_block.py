"""The base of every block of a spec, and how its validators name a place further down."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    create_model,
    model_validator,
)

Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="1 to 64 of a-z, 0-9, dot, dash and underscore, a letter or digit first",
    ),
]
"""Names become folders, MLflow runs and registered models: lower case, no separators."""


class Block(BaseModel):
    """Base of every block: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    TRUTHS: ClassVar[frozenset[str]] = frozenset()
    """Fields of other types that may be written as true or false as well."""

    @model_validator(mode="wrap")
    @classmethod
    def _no_truth_as_number(cls, block: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """pydantic would read `steps: true` as 1."""
        truths = _truths(cls, block) if isinstance(block, dict) else []
        if not truths:
            return handler(block)
        others: list[Any] = []
        try:
            handler(block)
        except ValidationError as error:
            others = error.errors(include_url=False)
        refused = {other["loc"] for other in others}
        raise PlacedErrors([t for t in truths if t["loc"] not in refused] + others, cls)


class PlacedErrors(ValueError):
    """Errors that a validator found further down than the field it was called for.

    pydantic cannot report them with their place, so they travel as one value error and
    `spec_errors` spreads them out again.

    Args:
        errors: As `ValidationError.errors()` gives them, `loc` relative to the validated field.
        model: The class whose rules were broken.
    """

    def __init__(self, errors: Iterable[Any], model: type[BaseModel]) -> None:
        self.errors = list(errors)
        self.model = model
        super().__init__(
            "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}" for e in self.errors)
        )


def rule(loc: tuple[str | int, ...], message: str) -> dict[str, Any]:
    """One broken rule in the form of `ValidationError.errors()`; the message holds the value."""
    return {"type": "rule", "loc": loc, "msg": message, "input": None}


def check_fields(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """`values` unchanged, once each is a field of `model` with a value that it may take.

    Rules that join several fields are not asked: the other fields may stand elsewhere.

    Raises:
        PlacedErrors: Every key or value that the model refuses.
    """
    if found := field_errors(model, values):
        raise PlacedErrors(found, model)
    return values


def errors_of(model: type[BaseModel], values: dict[str, Any]) -> list[dict[str, Any]]:
    """What `model` refuses of `values`, each error at its own place."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return list(_spread(error.errors(include_url=False)))
    return []


def field_errors(model: type[BaseModel], values: dict[str, Any]) -> list[dict[str, Any]]:
    """The same without the rules that join several fields."""
    return errors_of(_fields_alone(model), values)


def _spread(errors: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """With `PlacedErrors` opened."""
    for error in errors:
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, PlacedErrors):
            yield from ({**e, "loc": (*error["loc"], *e["loc"])} for e in _spread(cause.errors))
        else:
            yield dict(error)


@functools.cache
def _fields_alone(model: type[BaseModel]) -> type[BaseModel]:
    """The fields of a block without the rules that join them."""
    fields: dict[str, Any] = {
        k: (field.annotation, field) for k, field in model.model_fields.items()
    }
    return create_model(model.__name__, __base__=Block, **fields)


def _truths(model: type[BaseModel], values: dict[str, Any]) -> list[dict[str, Any]]:
    """One error for each true or false that stands where `model` takes none."""
    errors = []
    for name, field in model.model_fields.items():
        value = values.get(name)
        takes_truths = bool in (field.annotation, *get_args(field.annotation))
        if takes_truths or name in getattr(model, "TRUTHS", ()):
            continue
        if isinstance(value, bool):
            errors.append(rule((name,), f"must not be true or false, got {value}"))
        for index, item in enumerate(value if isinstance(value, list) else []):
            if isinstance(item, bool):
                errors.append(rule((name, index), f"must not be true or false, got {item}"))
    return errors
