"""Curves of trials, made by a model or a campaign, and what a way through them comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from orchestrator.front.hypervolume import hypervolume
from orchestrator.records import ModelRecord
from orchestrator.stopping.rungs import FIXED

DENSITIES = (0.5, 0.35, 0.25, 0.15)
UNITS = 40
"""Validations of a training."""
BUDGETS = (0.05, 0.1, 0.25, 0.5)
"""Of the compute that all trainings of the table take."""


@dataclass(frozen=True)
class Table:
    """The validation losses of all trials, each trained to its end."""

    densities: np.ndarray
    """[n], each in (0, 1]."""
    losses: np.ndarray
    """[n, u]: at u validations, equally apart; smaller is better."""
    gated: int = 0
    """Validations at which structures still change: the first so many."""

    @classmethod
    def make(cls, trials: int, seed: int, correlation: float, noise: float) -> Table:
        """Curves of a model: loss = a + b t^-c + noise, t from 0 to 1 in `UNITS` parts.

        A trial's quality moves a, by a heavy tail to the worse; b and c are drawn with a part in
        common with it, so that who is good early tends to be good late. Smaller models end higher.

        Args:
            trials: Over all densities in turn.
            seed: Of all that is drawn.
            correlation: Of a's deviate with those of b and c.
            noise: Standard deviation at each validation.
        """
        draw = np.random.RandomState(seed)
        densities = np.resize(DENSITIES, trials)
        quality, own = draw.randn(trials), draw.randn(2, trials)
        shared = np.sqrt(1 - correlation**2)
        b = 0.25 * np.exp(0.4 * (correlation * quality + shared * own[0]))
        c = 0.5 * np.exp(-0.3 * (correlation * quality + shared * own[1]))
        a = 2 + 0.12 * (1 - densities) ** 2 / np.sqrt(densities) + 0.08 * np.exp(0.8 * quality)
        t = np.arange(1, UNITS + 1) / UNITS
        losses = a[:, None] + b[:, None] * t[None, :] ** -c[:, None]
        return cls(densities, losses + noise * draw.randn(trials, UNITS))

    @classmethod
    def of(cls, records: Sequence[ModelRecord]) -> Table:
        """The curves of a campaign's trials, all validated at the same steps of the same phases.

        Raises:
            ValueError: They are not.
        """
        curves = [[p for p in each.curve if p.validation is not None] for each in records]
        looks = [[(point.step, point.phase in FIXED) for point in curve] for curve in curves]
        # a stretch that ends between two validations is validated at its end, too
        if not looks or any(look != looks[0] for look in looks):
            raise ValueError("the trials must have been validated at the same steps, alike")
        losses = [[point.validation for point in curve] for curve in curves]
        densities = np.array([record.config["density"] for record in records])
        gated = sum(not fixed for _, fixed in looks[0])
        return cls(densities, np.array(losses, dtype=np.float64), gated)

    @property
    def units(self) -> int:
        """Validations of each training."""
        return int(self.losses.shape[1])

    @property
    def sizes(self) -> list[float]:
        """All densities, the largest first."""
        return sorted(set(self.densities.tolist()), reverse=True)

    @property
    def reference(self) -> tuple[float, float]:
        """The worst loss and density that count: the 90th percentile of the smallest models' last
        losses, and a fifth more than the largest density."""
        smallest = self.losses[self.densities == min(self.sizes), -1]
        return float(np.percentile(smallest, 90)), 1.2 * max(self.sizes)

    def hypervolume(self, trials: list[int]) -> float:
        """Of the last losses and the sizes of some trials."""
        points = np.column_stack([self.losses[trials, -1], self.densities[trials]])
        return hypervolume(points.reshape(-1, 2), self.reference)

    def rank_correlation(self, unit: int) -> float:
        """Of losses at a validation and at the end, within a density; mean over them."""
        found = []
        for density in self.sizes:
            rows = self.losses[self.densities == density]
            places = [np.argsort(np.argsort(rows[:, at])) for at in (unit - 1, -1)]
            found.append(np.corrcoef(places[0], places[1])[0, 1])
        return fmean(found)


@dataclass(frozen=True)
class Replay:
    """What came of one way through the table."""

    spent: list[int]
    """Validations of all trials, when one finished."""
    finished: list[int]
    """Trials in the order in which they finished."""
    compute: int
    """Validations in all."""

    def within(self, budget: float) -> list[int]:
        """What was finished when so many validations had been made."""
        return [
            trial for trial, spent in zip(self.finished, self.spent, strict=True) if spent <= budget
        ]


def figures(table: Table, found: Replay) -> list[float]:
    """Compute and hypervolume of all, relative to those of the whole table; then the hypervolume
    within each of `BUDGETS`; then the finished trials; then by how much the best loss of each
    density is above the table's."""
    whole = table.losses.size
    best = table.hypervolume(list(range(len(table.densities))))
    volumes = [table.hypervolume(found.within(budget * whole)) / best for budget in BUDGETS]
    lost = []
    for density in table.sizes:
        rows = np.flatnonzero(table.densities == density)
        ended = [trial for trial in found.finished if table.densities[trial] == density]
        least = table.losses[ended, -1].min() if ended else np.inf
        lost.append(float(least - table.losses[rows, -1].min()))
    everything = table.hypervolume(found.finished) / best
    return [found.compute / whole, everything, *volumes, float(len(found.finished)), *lost]
