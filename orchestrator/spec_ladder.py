"""How one training serves several densities: the block `search.ladder`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.spec_block import Block


class LadderSpec(Block):
    """One descent through all of `search.density`, with a branch at each that ends as a model,
    instead of one trial per density. With the defaults n densities cost 0.35 + 0.4 n trials."""

    first: float = Field(0.5, gt=0, le=100)
    """Steps with gates down to the highest density, as a part of `method.steps`."""
    descent: float = Field(0.15, gt=0, le=100)
    """Steps with gates from one density to the next, on average over them, likewise."""
    recovery: float = Field(0.25, gt=0, le=100)
    """Steps of each branch, likewise: gates harden for a quarter of them (1 -
    `method.anneal_fraction`), the projected model trains in the others."""
    run: Literal["together", "apart"] = "together"
    """`together`: the branches follow the trunk in its own trial. `apart`: each is a trial of its
    own once the trunk is through, which takes less time where a cluster has room for several."""
