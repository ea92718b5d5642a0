"""Which earlier campaigns a search begins with: the block `search.warm_start`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from orchestrator.spec_block import Block, Name


class WarmStart(Block):
    """Earlier campaigns, in the same MLflow tracking store, whose settings the search begins with.

    Taken are finished trials of a task with the same data and metric, for a method of the same kind
    and name, if their values lie in what is searched today. They are read once and kept. In the
    file a list of names is enough: `warm_start: [first, second]`.
    """

    campaigns: list[Name] = Field(min_length=1)
    """Their names."""
    top: int = Field(1, ge=1, le=1000)
    """Settings of each method at each density: as many of its draws are the best earlier ones at
    the nearest density, the others are drawn as ever. 1: the best, which leaves room for others."""

    @field_validator("campaigns")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError(f"campaigns must differ, got {value}")
        return value


def with_names_alone(block: Any) -> Any:
    """The block `search` with a block `warm_start` in place of a list of names."""
    if not isinstance(block, dict) or not isinstance(block.get("warm_start"), list):
        return block
    return block | {"warm_start": {"campaigns": block["warm_start"]}}
