"""Whether a trial goes on past a rung: asynchronous successive halving with several objectives.

Of all that have been at the rung so far a part is promoted, by non-dominated rank, and within a
rank by an order that spreads over the front: an epsilon-net, which did best among the rules that
Schmucker et al. 2021 (arXiv 2106.12639) compared. As in Ray Tune's ASHA (Li et al. 2020, arXiv
1810.05934) nobody waits: a trial is judged once, when it arrives, and stops or goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.front.dominance import Losses, checked, nondomination_rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """A trial at a rung."""

    cell: tuple[str, float]
    """Method and density: of each pair a search needs one trial that ends, the best one."""
    loss: float
    """What it is compared by (`outlook`), smaller is better; infinite if it was not finite."""
    excess: float
    """How far its size is above the density that was asked for; 0 for whoever met it."""

    @property
    def size(self) -> float:
        """As the search counts it: the density that was asked for and what it is exceeded by."""
        return self.cell[1] + self.excess

    @property
    def preference(self) -> tuple[float, float]:
        """Within a cell, as the search has it: a size that was missed first."""
        return self.excess, self.loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a rung said of a trial."""

    kept: bool
    reason: str
    """In words, with the numbers."""
    rank: int
    """Non-dominated rank, from 0."""
    place: int
    """From 1, over all ranks."""
    among: int
    """How many had been at the rung, the trial among them."""


def judge(mine: Figures, others: Sequence[Figures], keep: float, at_least: int) -> Verdict:
    """Judge a trial that arrives at a rung.

    A trial that is ahead in its cell always goes on: what follows from a cell is decided by the
    best of its trials, and one of them has to end. One whose projected size is too large, where
    another of the cell has met it, never goes on: the size is final, and the search puts it behind.

    Args:
        mine: Of the trial.
        others: Of all that have been there, in the order in which they came.
        keep: Part that is promoted, rounded up; 0 < keep < 1.
        at_least: With fewer at the rung, the trial among them, nobody is stopped.
    """
    everyone = [*others, mine]
    rank, place = place_of_last([(each.loss, each.size) for each in everyone])
    mates = [each for each in others if each.cell == mine.cell]
    most = math.ceil(keep * len(everyone) - 1e-9)
    met = mine.excess > 0 and any(each.excess == 0 for each in mates)
    if met:
        kept = False
        reason = (
            f"the size is exceeded by {mine.excess:.3f} in density and stays so, others have met it"
        )
    elif not any(each.preference < mine.preference for each in mates):
        kept, reason = True, f"ahead at density {mine.cell[1]:g}"
    elif len(everyone) < at_least:
        kept, reason = True, f"{len(everyone)} at the rung, fewer than {at_least}"
    else:
        kept = place <= most
        reason = f"place {place} of {len(everyone)} by rank and spread, {most} go on"
    return Verdict(kept=kept, reason=reason, rank=rank, place=place, among=len(everyone))


def place_of_last(loss_values: ArrayLike) -> tuple[int, int]:
    """Non-dominated rank of the last row, from 0, and its place in the whole order, from 1.

    Args:
        loss_values: [n, m], n >= 1, without NaN.
    """
    losses = checked(loss_values)
    ranks = nondomination_rank(losses)
    last = len(losses) - 1
    alike = np.flatnonzero(ranks == ranks[last])
    order = spread_order(_scaled(losses)[alike])
    ahead = int((ranks < ranks[last]).sum())
    return int(ranks[last]), ahead + int(np.flatnonzero(alike[order] == last)[0]) + 1


def spread_order(points: ArrayLike) -> list[int]:
    """Rows in an order each beginning of which is spread: the first row with the least of the first
    column, then always the one that is farthest from all before (Gonzalez 1985), the earlier of
    equals.

    Args:
        points: [n, m], n >= 1, finite.

    Returns:
        Indices of all rows.
    """
    rows = checked(points)
    order = [int(np.argmin(rows[:, 0]))]
    far = np.full(len(rows), np.inf)
    while len(order) < len(rows):
        far = np.minimum(far, np.linalg.norm(rows - rows[order[-1]], axis=1))
        far[order] = -1.0
        order.append(int(np.argmax(far)))
    return order


def _scaled(losses: Losses) -> Losses:
    """Every column from 0 to 1; what is infinite lies another 1 beyond."""
    columns = []
    for values in losses.T:
        known = values[np.isfinite(values)]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
        columns.append(np.clip((values - low) / ((high - low) or 1.0), -1.0, 2.0))
    return np.column_stack(columns)
