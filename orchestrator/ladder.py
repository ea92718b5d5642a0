"""A ladder: one descent through several densities, and at each a branch that ends as a model.

The trunk trains with gates and goes from density to density at the full learning rate. At each its
state is kept, a start; a branch goes on from there with gates that harden, is projected, and trains
its small model while the rate falls. The steps of the trunk serve every density below, so that a
model has more training behind it than it costs.

Trunk and branches are jobs with keys of their own. A branch is a function of its start, whichever
process made that: it may follow the trunk in one trial, or run on other machines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from orchestrator.bucket.kept import states_at
from orchestrator.bucket.places import opened
from orchestrator.errors import StorageError
from orchestrator.records import LadderFacts
from orchestrator.snapshot import Snapshot, SnapshotError, SnapshotStore
from orchestrator.spec_ladder import LadderSpec
from orchestrator.spec_method import MethodSpec
from orchestrator.spec_search import SearchSpec
from orchestrator.workers import Workers


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Where a job stands in its ladder; JSON-able values."""

    trunk: str
    """Key of the trunk."""
    densities: list[float]
    """From high to low."""
    rungs: list[int]
    """Step of the trunk at which each of them is reached; in a chain the last one of its model."""
    branch_steps: int
    """Beyond the trunk; a chain has none."""
    starts: str
    """Place of the trunk's states at the rungs."""
    rung: int | None = None
    """Of the density that this job's model is to have; None of the trunk."""
    chain: bool = False
    """Whether there is no trunk: each model goes on from that of the density above."""
    parent: str | None = None
    """Place of the exported model that a job in a chain goes on from; None begins with dense."""

    @property
    def num_steps(self) -> int:
        """Of the job's training, with the part of others that it continues."""
        if self.rung is None:
            return self.rungs[-1]
        return self.rungs[self.rung] + self.branch_steps

    def part(self, rung: int) -> tuple[int, int]:
        """Step of the trunk, or the chain, at which the descent to a rung begins, and how many it
        takes."""
        begin = self.rungs[rung - 1] if rung else 0
        return begin, self.rungs[rung] - begin


def plan_steps(
    ladder: LadderSpec, method: MethodSpec, densities: Sequence[float]
) -> tuple[list[int], int]:
    """Steps of the trunk at which it reaches each density, and those of a branch; of a chain, which
    has no branches, those that its models have behind them.

    Args:
        ladder: Parts of the method's steps.
        method: Its steps.
        densities: From high to low.
    """
    first, descent, recovery = ladder.parts
    weights = _weights(ladder, densities)
    below = descent * method.steps * len(weights)
    rungs = [max(1, round(first * method.steps))]
    done = 0.0
    for weight in weights:
        done += below * weight / sum(weights)
        rungs.append(max(rungs[-1] + 1, round(rungs[0] + done)))
    return rungs, max(1, round(recovery * method.steps)) if recovery else 0


def _weights(ladder: LadderSpec, densities: Sequence[float]) -> list[float]:
    """How long the way to each density but the first is to be."""
    if ladder.by == "trunk":
        # to halve a density takes the same number of steps anywhere
        return [math.log(a / b) for a, b in pairwise(densities)]
    # the front counts a model's loss as far as the next larger one is away
    return [a - b for a, b in pairwise(densities)]


def link_steps(method: MethodSpec, steps: int) -> tuple[int, int]:
    """Steps of a chain's model with gates and without, divided as in a training of its own.

    Args:
        method: Of the ladder.
        steps: Of the model.
    """
    own = method.model_copy(update={"steps": steps})
    return own.gated_steps, own.finetune_steps


def ladder_of(
    search: SearchSpec,
    method: MethodSpec,
    trunk: str,
    starts: str,
    rung: int | None,
    above: str | None,
) -> Ladder:
    """Where a job stands in the ladder of a search.

    Args:
        search: With a ladder.
        method: Its steps.
        trunk: Key of the trunk.
        starts: Place for its states.
        rung: Of the job; None for the trunk itself.
        above: Place where the model of the density above is, or will be; None of the first.
    """
    assert search.ladder is not None
    densities, is_chain = search.descending, search.ladder.by == "chain"
    rungs, branch_steps = plan_steps(search.ladder, method, densities)
    return Ladder(
        trunk=trunk,
        densities=densities,
        rungs=rungs,
        branch_steps=branch_steps,
        starts=starts,
        rung=rung,
        chain=is_chain,
        parent=above if is_chain else None,
    )


class Starts:
    """The trunk's states at the rungs, each in a folder of its own.

    Args:
        place: Theirs alone, a path that all workers see or a URI.
        workers: All of them call the same methods.
    """

    def __init__(self, place: str, workers: Workers) -> None:
        self._place, self._workers = place, workers

    def reached(self, ladder: Ladder) -> int:
        """How many rungs, from the first on, have a start that can be read."""
        found = 0
        if self._workers.rank == 0:
            for rung, step in enumerate(ladder.rungs):
                if self._store(rung).last_whole() != step:
                    break
                found = rung + 1
        # one that sees less of the storage must not begin somewhere else
        return int(self._workers.gather(found)[0])

    def save(self, ladder: Ladder, rung: int, start: Snapshot) -> None:
        """Raises StorageError on all workers if it cannot be written: without it no branch."""
        problem = None
        if self._workers.rank == 0:
            try:
                self._store(rung).save(ladder.rungs[rung], start)
            except (StorageError, SnapshotError) as error:
                problem = str(error)
        problem = self._workers.gather(problem)[0]
        if problem:
            raise StorageError(problem)

    def load(self, ladder: Ladder, rung: int) -> Snapshot:
        """Raises SnapshotError if it is missing or damaged."""
        return self._store(rung).load(ladder.rungs[rung])

    def clear(self) -> None:
        """Forget all of them: every branch has its model."""
        mirror, folder = opened(self._place)
        mirror.forget(folder)

    def _store(self, rung: int) -> SnapshotStore:
        return states_at(f"{self._place}/rung{rung}", needed=True)


def ladder_facts(job: dict[str, Any] | None) -> LadderFacts | None:
    """What the record of a model says of its ladder.

    Args:
        job: Fields of the job's `Ladder`, if it has one.
    """
    if job is None:
        return None
    ladder = Ladder(**job)
    assert ladder.rung is not None
    _, own = ladder.part(ladder.rung)
    return LadderFacts(
        trunk=ladder.trunk,
        densities=ladder.densities,
        shared_steps=ladder.num_steps - own - ladder.branch_steps,
        trunk_steps=own,
        branch_steps=ladder.branch_steps,
    )
