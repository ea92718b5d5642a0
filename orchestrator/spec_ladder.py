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
    model of the density above, its factors multiplied out; the first is a training of its own."""
    first: float = Field(0.5, gt=0, le=100)
    """Steps with gates down to the highest density, as a part of `method.steps`. In a chain gates
    have `method.gated_fraction` of these and `recovery`."""
    descent: float = Field(0.15, gt=0, le=100)
    """Steps with gates from one density to the next, on average over them, likewise."""
    recovery: float = Field(0.25, gt=0, le=100)
    """Steps of each branch, likewise: gates harden for a quarter of them (1 -
    `method.anneal_fraction`), the projected model trains in the others. In a chain gates harden
    in the steps before, and the projected model has all of these."""
    run: Literal["together", "apart"] = "together"
    """`together`: the branches follow the trunk in its own trial. `apart`: each is a trial of its
    own once the trunk is through, which takes less time where a cluster has room for several."""


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
    if ladder.by == "chain" and method.get("embeddings"):
        message = "by chain multiplies out the factors of linear layers only"
        yield rule(("ladder",), f"{message}: method.embeddings must be false, got true")
    for fraction in (method.get("gated_fraction"), searched.get("gated_fraction")):
        if fraction is not None and ladder.by == "trunk":
            message = "divides the steps itself, so that method.gated_fraction has no meaning"
            yield rule(("ladder",), f"{message}, got {fraction}")
