"""How models are compressed (`method`) and which of its fields a campaign tries (`search`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from orchestrator.spec_block import Block, PlacedErrors, rule

Density = Annotated[float, Field(gt=0, le=1)]
Patterns = Annotated[list[str], Field(min_length=1)]


class MethodSpec(Block):
    """FLOP-L0 (Wang et al. 2020, arXiv 1910.04732) with exact projection and recovery."""

    kind: Literal["flop-l0"] = "flop-l0"
    include: Patterns = Field(default=["*"])
    exclude: list[str] = Field(default=["*lm_head*", "*classifier*", "*score*", "*pooler*"])
    density: Density = 0.3
    """Kept fraction of the parameters of the matched matrices."""
    anneal_steps: int = Field(200, ge=1)
    """Steps over which the target falls from 1 to `density`."""
    hold_steps: int = Field(60, ge=0)
    """Steps at the final target before the projection."""
    finetune_steps: int = Field(500, ge=0)
    """Steps after the projection, on the compacted model. It gets about two thirds of all
    steps, for recovery is where the loss comes back (docs/results/gates.md)."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    finetune_learning_rate: float = Field(3e-3, gt=0, le=1)
    penalty_lr: float = Field(0.2, gt=0, le=100)
    """Ascent rate of the two Lagrangian multipliers: the field that a campaign searches. In the
    demo 0.07 to 0.5 bring the gates within 0.03 of the target; low densities want high rates."""
    gate_lr: float | None = Field(None, gt=0, le=10)
    """Rate of log_alpha; by default 30 / gated steps, so that a gate can shut in a quarter of
    them."""
    price_floor: float = Field(0.1, ge=0, le=1)
    """Least gradient of the expected size in log_alpha; 0 is the published method, whose open
    gates the penalty cannot reach."""
    temperature: float = Field(1.0, gt=0, le=10)
    distill: float = Field(0.5, ge=0, le=1)
    """Weight of the dense model's predictions in the loss; 0 trains on the labels alone."""
    distill_temperature: float = Field(1.0, gt=0, le=20)
    max_grad_norm: float = Field(1.0, gt=0)


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


def _choice_kind(value: Any) -> str | None:
    if isinstance(value, dict | Distribution):
        return "range"
    return "values" if isinstance(value, list) else None


Choice = Annotated[
    Annotated[Distribution, Tag("range")]
    | Annotated[list[StrictFloat | StrictInt | StrictStr], Tag("values")],
    Discriminator(_choice_kind),
]
"""A list of values to choose from, or a range to draw from."""

SEARCHABLE = sorted(set(MethodSpec.model_fields) - {"kind", "density", "include", "exclude"})


def _searchable_in_schema(schema: dict[str, Any]) -> None:
    choice = schema["properties"]["fields"]["additionalProperties"]
    schema["properties"] |= {name: choice for name in SEARCHABLE}


class SearchSpec(Block):
    """Which trials to run: every density, `trials_per_density` draws of everything else.

    In the file the fields stand directly in the block, `penalty_lr: {log_uniform: [0.01, 1]}`,
    or under `fields`.
    """

    model_config = ConfigDict(json_schema_extra=_searchable_in_schema)

    density: list[Density] = Field(min_length=1)
    trials_per_density: int = Field(1, ge=1, le=10_000)
    fields: dict[str, Choice] = Field(default_factory=dict)
    """Any field of `method`: a list of values to choose from, or a range."""

    @model_validator(mode="before")
    @classmethod
    def _direct_fields(cls, block: Any) -> Any:
        """Move the method's fields that stand directly in the block into `fields`."""
        if not isinstance(block, dict):
            return block
        direct = {name: block[name] for name in SEARCHABLE if name in block}
        rest = {name: value for name, value in block.items() if name not in direct}
        fields = block.get("fields", {})
        if not isinstance(fields, dict):
            return rest  # to be refused for that alone
        message = "is given twice, here and under `fields`"
        if twice := [rule((name,), message) for name in direct if name in fields]:
            raise PlacedErrors(twice, cls)
        return rest | {"fields": fields | direct}

    @field_validator("density")
    @classmethod
    def _distinct(cls, value: list[float]) -> list[float]:
        if len(set(value)) != len(value):
            raise ValueError(f"densities must differ, got {value}")
        return value

    @field_validator("fields")
    @classmethod
    def _searchable(cls, value: dict[str, Any]) -> dict[str, Any]:
        errors = [error for name, choice in value.items() for error in _bad_values(name, choice)]
        if errors:
            raise PlacedErrors(errors, MethodSpec)
        return value


def _bad_values(name: str, choice: Distribution | list[Any]) -> Iterator[dict[str, Any]]:
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
        try:
            MethodSpec.model_validate({name: value})
        except ValidationError as error:
            for found in error.errors(include_url=False):
                yield {**found, "loc": (*where, index), "field": name}
