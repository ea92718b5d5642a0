"""How one training serves several densities: the block `search.ladder`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from orchestrator.spec_block import Block, rule


class LadderSpec(Block):
    """One descent through all of `search.density`, with a finished model at each, instead of one
    trial per density. With the defaults n densities cost 1 + 0.375 (n - 1) trials in steps."""

    by: Literal["chain", "trunk"] = "chain"
    """`chain`: each density goes on from the finished model of the density above, its factors
    multiplied out; every model has a training of its own, but for where it begins. `trunk`:
    branches leave one gated training, and may run side by side."""
    first: float | None = Field(None, gt=0, le=100)
    """All steps of a chain's first model, as a part of `method.steps`: 1. With a trunk, its steps
    down to the highest density: 0.5."""
    descent: float | None = Field(None, gt=0, le=100)
    """All steps of a chain's further model, on average over them, likewise: 0.375. With a trunk,
    its steps from one density to the next: 0.15."""
    recovery: float | None = Field(None, gt=0, le=100)
    """Steps of each branch of a trunk, likewise: 0.25. Gates harden for a quarter of them (1 -
    `method.anneal_fraction`), the projected model trains in the others. A chain has no branches."""
    run: Literal["together", "apart"] = "together"
    """`together`: all of a ladder in one trial. `apart`: each branch is a trial of its own once the
    trunk is through, which takes less time where a cluster has room for several."""

    @property
    def parts(self) -> tuple[float, float, float]:
        """First, descent and recovery, as parts of a training's steps. Five densities cost 2.5
        trainings, with a whole one for a chain's first model, or 2.35 with a trunk."""
        usual = (1.0, 0.375, 0.0) if self.by == "chain" else (0.5, 0.15, 0.25)
        given = (self.first, self.descent, self.recovery)
        first, descent, recovery = (
            each if value is None else value for each, value in zip(usual, given, strict=True)
        )
        return first, descent, recovery


def without_truth(block: Any) -> Any:
    """The block `search` with the defaults in place of `ladder: true`, and nothing of `false`."""
    if not isinstance(block, dict) or not isinstance(block.get("ladder"), bool):
        return block
    return block | {"ladder": {} if block["ladder"] else None}


def ladder_errors(
    ladder: LadderSpec, densities: Sequence[float], **others: Any
) -> list[dict[str, Any]]:
    """What a ladder refuses of the block `search`.

    Args:
        ladder: Valid by itself.
        densities: That it is to go through.
        others: Fields that single out some densities, which a ladder has no trials of their own
            for; None if they are not given.
    """
    errors = []
    if len(densities) < 2:
        message = f"needs two or more values in search.density, got {list(densities)}"
        errors.append(rule(("ladder",), message))
    if ladder.by == "chain" and ladder.run == "apart":
        message = (
            "must be together in a chain, where each model waits for another, got apart: "
            "branches of a trunk (by: trunk) can be"
        )
        errors.append(rule(("ladder", "run"), message))
    if ladder.by == "chain" and ladder.recovery is not None:
        message = "is that of a trunk's branches (by: trunk): a chain takes descent alone, got"
        errors.append(rule(("ladder", "recovery"), f"{message} {ladder.recovery:g}"))
    for name, value in others.items():
        if value is not None:
            message = f"a ladder goes through all of search.density as a whole, got {value}"
            errors.append(rule((name,), message))
    return errors


def misplaced(
    ladder: LadderSpec, method: Mapping[str, Any], searched: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """What a ladder refuses of a method, at the place of the ladder.

    Args:
        ladder: Valid by itself.
        method: Every field of it.
        searched: Its fields that trials draw.
    """
    kinds = searched.get("kind", method["kind"])
    if kinds != "adaptive":
        message = "needs kind 'adaptive', whose gates meet each density on their way"
        yield rule(("ladder",), f"{message}, got {kinds!r}")
    for fraction in (method.get("gated_fraction"), searched.get("gated_fraction")):
        if fraction is not None and ladder.by == "trunk":
            message = "divides the steps itself, so that method.gated_fraction has no meaning"
            yield rule(("ladder",), f"{message}, got {fraction}")
