"""What happens to models once they are trained: the blocks `measure`, `select` and `promote`."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, field_validator

from orchestrator.rules import parse_rule
from orchestrator.spec_block import Block, PlacedErrors, rule


class MeasureSpec(Block):
    """Speed: paired and interleaved, alone on the machine, after all training."""

    batch: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 32], min_length=1)
    """Batch sizes to time, each."""
    length: int = Field(128, ge=1)
    """Tokens per sequence."""
    repeats: int = Field(9, ge=7)
    """Medians of fewer than 7 pairs moved by more than 10 % on a shared machine."""
    threads: int | None = Field(None, ge=1)
    """Default: every core the measuring process may use."""
    int8: bool = False
    """Also every model with its linear layers in 8-bit integers, the dense one among them: quality
    on test, bytes, speed against dense in float32. CPU only."""


def _check_rules(texts: list[str]) -> list[str]:
    errors = []
    for index, text in enumerate(texts):
        try:
            parse_rule(text)
        except ValueError as error:
            errors.append(rule((index,), str(error)))
    if errors:
        raise PlacedErrors(errors, Block)
    return texts


class SelectSpec(Block):
    """`require` rules such as `quality_drop <= 2%`, then one objective among those that pass."""

    require: list[str] = Field(default_factory=list)
    """Rules that the model must meet on validation."""
    then: Literal["smallest", "fastest", "best", "knee"] = "smallest"
    """`knee`: where the front bends most, so that more of one objective costs much of another."""
    epsilon: float = Field(0, ge=0, lt=1)
    """Figures that differ by no more than this part of dense count as equal: then the better
    quality decides, for `best` the smaller size."""
    reference_drop: float | None = Field(None, gt=0, le=10)
    """Relative loss of quality at the reference point of the hypervolume; by default the limit of
    `quality_drop` in `require`, or 0.1."""

    @field_validator("require")
    @classmethod
    def _parse(cls, value: list[str]) -> list[str]:
        return _check_rules(value)


class PromoteSpec(Block):
    """Registry name and the rules that the downloaded artifact must pass to become champion."""

    model: str = Field("{campaign}-{task}", max_length=128)
    """Name in the registry; holds {task}, and may hold {campaign}. With both filled in it has at
    most the 256 characters that MLflow's database has for it."""
    gates: list[str] = Field(default_factory=list)
    """Rules that the downloaded model must meet on test."""
    load_test: int = Field(0, ge=0, le=100_000)
    """Requests that the downloaded model must answer through MLflow's generic flavour, four at a
    time, each as the first; 0 leaves it out."""
    license: str | None = Field(None, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$")
    """Identifier such as apache-2.0, for the model's card; by default that of the pretrained model,
    where its folder says one."""
    require_license: bool = False
    """Whether a model without one may not become champion."""
    approval: bool = False
    """Whether what passes waits for a person, who says `lowrank promote`."""

    @field_validator("gates")
    @classmethod
    def _parse(cls, value: list[str]) -> list[str]:
        return _check_rules(value)

    @field_validator("model")
    @classmethod
    def _placeholders(cls, value: str) -> str:
        try:
            parts = list(Formatter().parse(value))
        except ValueError as error:
            raise ValueError(_only_placeholders(value)) from error
        # not by filling them in: a width in braces can ask for any amount of memory
        if any(p[1:] not in _PLACEHOLDERS for p in parts):
            raise ValueError(_only_placeholders(value))
        if not value.isprintable():
            raise ValueError(f"a model's name is printable, got {value!r:.60}")
        if set(value) & set("/:'\""):
            raise ValueError(f"MLflow's model names hold no / : ' or \", got {value!r}")
        if "task" not in {field for _, field, _, _ in parts}:
            raise ValueError(f"{{task}} must be part of the name, got {value!r}")
        return value


_PLACEHOLDERS = {(None, None, None), ("campaign", "", None), ("task", "", None)}
"""Field, format and conversion of what may stand in braces, and of text without any."""


def _only_placeholders(value: str) -> str:
    return f"only {{campaign}} and {{task}} may stand in braces, got {value!r}"
