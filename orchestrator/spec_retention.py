"""How much of a disk a campaign may take: the block `retention`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from orchestrator.retention import parse_amount
from orchestrator.spec_block import Block


class RetentionSpec(Block):
    """How much of its storage a campaign may take, and what it gives up before it takes more.

    Records, runs, curves and reports are never given up, so nothing is trained again. Nor are the
    dense references, and what the registry knows.
    """

    budget: str | None = None
    """An amount such as `20 GB`, of all that the campaign keeps under `storage` and of the prepared
    data that it reads. By default nothing is given up."""
    keep: Literal["all", "front", "champion"] = "front"
    """Models whose weights stay, whatever the budget: every one; those of the front (and while
    trainings go on, those on the front of quality and size so far); or at the end the chosen one.
    The weights of others go when there is no other room."""
    snapshots: int = Field(2, ge=1, le=10)
    """States of a training on its way. 2: the last one, and the one before it for when that is
    damaged."""

    @field_validator("budget")
    @classmethod
    def _amount(cls, value: str | None) -> str | None:
        if value is not None:
            parse_amount(value)
        return value

    @property
    def num_bytes(self) -> int | None:
        """The budget."""
        return None if self.budget is None else parse_amount(self.budget)
