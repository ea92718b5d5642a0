"""How one training serves several densities: the block `search.ladder`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from orchestrator.spec_block import Block, rule


class LadderSpec(Block):
    """One descent through all of `search.density`, with a branch at each that ends as a model,
    instead of one trial per density. With the defaults n densities cost 0.35 + 0.4 n trials."""

    by: Literal["trunk", "chain"] = "trunk"
    """`trunk`: branches leave one gated training. `chain`: each density goes on from the finished
    model of the density above, its factors multiplied out; every model has a training of its
    own, but for where it begins."""
    first: float | None = Field(None, gt=0, le=100)
    """Steps with gates down to the highest density, as a part of `method.steps`: 0.5. In a chain
    all steps of the first model: 1."""
    descent: float | None = Field(None, gt=0, le=100)
    """Steps with gates from one density to the next, on average over them, likewise: 0.15. In a
    chain all steps of a further model: 0.375."""
    recovery: float | None = Field(None, gt=0, le=100)
    """Steps of each branch, likewise: 0.25. Gates harden for a quarter of them (1 -
    `method.anneal_fraction`), the projected model trains in the others. A chain has no branches."""
    run: Literal["together", "apart"] = "together"
    """`together`: the branches follow the trunk in its own trial. `apart`: each is a trial of its
    own once the trunk is through, which takes less time where a cluster has room for several."""

    @property
    def parts(self) -> tuple[float, float, float]:
        """First, descent and recovery, as parts of a training's steps. Five densities cost 2.35 or
        2.5 trainings: within 2.5 a chain's first model can have a whole one."""
        usual = (0.5, 0.15, 0.25) if self.by == "trunk" else (1.0, 0.375, 0.0)
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
        message = "must be together in a chain, where each model waits for another, got apart"
        errors.append(rule(("ladder", "run"), message))
    if ladder.by == "chain" and ladder.recovery is not None:
        message = "is that of branches: a chain has none and takes descent alone, got"
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
