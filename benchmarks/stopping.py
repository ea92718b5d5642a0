"""What stopping early saves and loses, on a table of learning curves: hypervolume per compute.

    python -W ignore -m benchmarks.stopping --page docs/results/stopping.md

The table is synthetic: curves of a parametric model, not of trainings. It is gone through in one
order by a number of workers, with nobody stopped, with `search.stopping`, and with Ray Tune's ASHA,
which knows one metric; the rules are the classes that a campaign and Tune themselves use.
"""

from __future__ import annotations

import argparse
import heapq
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from orchestrator.front.hypervolume import hypervolume
from orchestrator.layout import Layout
from orchestrator.method_search import TrialPlan
from orchestrator.spec_method import MethodSpec
from orchestrator.spec_stopping import StoppingSpec
from orchestrator.stopping.notes import Notes
from orchestrator.stopping.rungs import Rungs
from orchestrator.stopping.scheduler import FrontScheduler
from orchestrator.stopping.signals import Signals, Stop
from orchestrator.wording import plural

DENSITIES = (0.5, 0.35, 0.25, 0.15)
UNITS = 40
"""Validations of a training."""
LARGEST = 0.6
"""Reference of the size."""
BUDGETS = (0.05, 0.1, 0.25, 0.5)
"""Of the compute that all trainings of the table take."""

Answer = Callable[[int, int, float], bool]
"""Trial, validation from 1, loss -> whether its training goes on."""


@dataclass(frozen=True)
class Table:
    """Curves: loss = a + b t^-c + noise, t from 0 to 1 in `UNITS` parts.

    A trial's quality moves a, by a heavy tail to the worse; b and c are drawn with a part in common
    with it, so that who is good early tends to be good late. Smaller models end higher.
    """

    densities: np.ndarray
    """[n]"""
    losses: np.ndarray
    """[n, UNITS]"""

    @classmethod
    def make(cls, trials: int, seed: int, correlation: float, noise: float) -> Table:
        """Args:
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

    def hypervolume(self, trials: list[int]) -> float:
        """Of the last losses and the sizes of some trials."""
        smallest = self.losses[self.densities == min(DENSITIES), -1]
        reference = (float(np.percentile(smallest, 90)), LARGEST)
        points = np.column_stack([self.losses[trials, -1], self.densities[trials]])
        return hypervolume(points.reshape(-1, 2), reference)

    def rank_correlation(self, unit: int) -> float:
        """Of losses at a validation and at the end, within a density; mean over them."""
        found = []
        for density in DENSITIES:
            rows = self.losses[self.densities == density]
            places = [np.argsort(np.argsort(rows[:, at])) for at in (unit - 1, UNITS - 1)]
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


def replay(table: Table, workers: int, seed: int, answer: Answer, late: int) -> Replay:
    """Go through a table in an order that the seed decides, each worker a trial at a time.

    Args:
        table: Of curves.
        workers: Side by side; machines are up to twice as fast as others, trial by trial.
        seed: Of order and speeds.
        answer: Whether a trial goes on.
        late: Validations that a training still makes after it was to stop.
    """
    draw = np.random.RandomState(seed)
    order = draw.permutation(len(table.densities)).tolist()
    pace = np.exp(draw.uniform(-0.35, 0.35, len(order)))
    queue = [(pace[trial], trial, 1) for trial in order[:workers]]
    heapq.heapify(queue)
    waiting, stops = order[workers:][::-1], dict[int, int]()
    compute, spent, finished = 0, list[int](), list[int]()
    while queue:
        now, trial, unit = heapq.heappop(queue)
        compute += 1
        if trial not in stops and not answer(trial, unit, float(table.losses[trial, unit - 1])):
            stops[trial] = min(unit + late, UNITS)
        if unit == UNITS:
            finished.append(trial)
            spent.append(compute)
        elif stops.get(trial) != unit:
            heapq.heappush(queue, (now + pace[trial], trial, unit + 1))
            continue
        if waiting:
            following = waiting.pop()
            heapq.heappush(queue, (now + pace[following], following, 1))
    return Replay(spent, finished, compute)


class Told(Signals):
    """Keeps whom it tells, without a cluster."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped: set[str] = set()

    def send(self, model: str, stop: Stop) -> None:
        self.stopped.add(model)


def ours(table: Table, rungs: list[float], folder: Path) -> Answer:
    """`search.stopping`: the scheduler of a campaign, notes and all."""
    methods = {d: MethodSpec(kind="low-rank", density=d, steps=UNITS) for d in DENSITIES}
    plans = [
        TrialPlan(
            key=f"{trial:06d}",
            name=str(trial),
            method_name="low-rank",
            method=methods[float(density)],
            searched={},
            seed=0,
            repeat=0,
        )
        for trial, density in enumerate(table.densities)
    ]
    seen = Rungs(StoppingSpec(rungs=rungs), False, Notes(Layout(folder, "replayed"), "table"))
    seen.plan(plans, {})
    told = Told()
    scheduler = FrontScheduler(seen, told)

    def answer(trial: int, unit: int, loss: float) -> bool:
        key = plans[trial].key
        launch = SimpleNamespace(config={"launch": {"job": {"key": key}}})
        report = {"step": unit, "total_steps": UNITS, "phase": "finetune", "validation": loss}
        scheduler.on_trial_result(None, launch, report)
        return key not in told.stopped

    return answer


def asha(table: Table, rungs: list[float]) -> Answer:
    """Ray Tune's own, on the loss, with the same rungs and the same half."""
    scheduler = AsyncHyperBandScheduler(
        time_attr="step",
        metric="validation",
        mode="min",
        max_t=UNITS,
        grace_period=round(rungs[0] * UNITS),
        reduction_factor=2,
    )
    trials = [SimpleNamespace(trial_id=str(trial)) for trial in range(len(table.densities))]
    for trial in trials:
        scheduler.on_trial_add(None, trial)

    def answer(trial: int, unit: int, loss: float) -> bool:
        result: dict[str, Any] = {"step": unit, "validation": loss}
        if unit == UNITS:
            scheduler.on_trial_complete(None, trials[trial], result)
            return True
        decision = scheduler.on_trial_result(None, trials[trial], result)
        return decision != TrialScheduler.STOP

    return answer


SETTINGS = {
    "0.4 and 0.8": [0.4, 0.8],
    "0.1, 0.2, 0.4 and 0.8": [0.1, 0.2, 0.4, 0.8],
}
"""Late rungs, as gates leave them, and those of a method without gates. Each is twice the one
before, as ASHA's are."""
WAYS = ("nobody stopped", "search.stopping", "ASHA on the loss")


def compare(table: Table, rungs: list[float], workers: int, seed: int) -> dict[str, Replay]:
    """The three ways through one table, in one order."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            WAYS[0]: replay(table, workers, seed, lambda *_: True, 0),
            # a training hears of it at its next validation; Tune's own is spared that
            WAYS[1]: replay(table, workers, seed, ours(table, rungs, Path(folder)), 1),
            WAYS[2]: replay(table, workers, seed, asha(table, rungs), 0),
        }


def figures(table: Table, found: Replay) -> list[float]:
    """Compute and hypervolume of all, relative to those of the whole table; then the hypervolume
    within each of `BUDGETS`; then the finished trials; then by how much the best loss of each
    density is above the table's."""
    whole = UNITS * len(table.densities)
    best = table.hypervolume(list(range(len(table.densities))))
    volumes = [table.hypervolume(found.within(budget * whole)) / best for budget in BUDGETS]
    lost = []
    for density in DENSITIES:
        rows = np.flatnonzero(table.densities == density)
        ended = [trial for trial in found.finished if table.densities[trial] == density]
        least = table.losses[ended, -1].min() if ended else np.inf
        lost.append(float(least - table.losses[rows, -1].min()))
    everything = table.hypervolume(found.finished) / best
    return [found.compute / whole, everything, *volumes, float(len(found.finished)), *lost]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2400)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--correlation", type=float, default=0.6)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    tables = [
        Table.make(options.trials, seed, options.correlation, options.noise)
        for seed in range(options.seeds)
    ]
    parts = []
    for name, rungs in SETTINGS.items():
        rows: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for seed, table in enumerate(tables):
            for way, found in compare(table, rungs, options.workers, seed).items():
                rows[way].append(figures(table, found))
        parts.append(section(name, rows))
        print(parts[-1], flush=True)
    if options.page is not None:
        options.page.write_text(page(options, tables, parts), encoding="utf-8")


def section(name: str, rows: dict[str, list[list[float]]]) -> str:
    """A table in Markdown, means over seeds."""
    budgets = " | ".join(f"at {budget:.0%}" for budget in BUDGETS)
    densities = " | ".join(f"{density:g}" for density in DENSITIES)
    width = 4 + len(BUDGETS) + len(DENSITIES)
    lines = [
        f"Rungs {name}:",
        "",
        f"| | compute | hypervolume | {budgets} | finished | {densities} |",
        "|" + "---|" * width,
    ]
    for way, found in rows.items():
        means = [fmean(values) for values in zip(*found, strict=True)]
        compute, volume, *volumes = means[: 2 + len(BUDGETS)]
        count, *lost = means[2 + len(BUDGETS) :]
        cells = [f"{compute:.1%}", f"{volume:.4f}", *(f"{each:.4f}" for each in volumes)]
        cells += [f"{count:.0f}", *(f"{each:.4f}" for each in lost)]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(options: argparse.Namespace, tables: list[Table], parts: list[str]) -> str:
    """What is written of it; the figures alone depend on the run."""
    ranks = [
        f"{fmean(t.rank_correlation(round(rung * UNITS)) for t in tables):.2f} at {rung:g}"
        for rung in (0.1, 0.2, 0.4, 0.8)
    ]
    return PAGE.format(
        trials=options.trials,
        workers=options.workers,
        seeds=plural(options.seeds, "seed"),
        units=UNITS,
        largest=LARGEST,
        correlation=options.correlation,
        noise=options.noise,
        densities=", ".join(f"{density:g}" for density in DENSITIES),
        ranks=", ".join(ranks),
        parts="\n\n".join(parts),
    )


PAGE = """# Stopping early on a table of curves

Written by

    python -W ignore -m benchmarks.stopping --page docs/results/stopping.md

**The table is synthetic.** No training was run for it: {trials} trials over the densities
{densities}, each a curve of {units} validations, loss = a + b t^-c + noise of {noise:g}. A trial's
quality moves a, with a tail to the worse; the deviates of b and c correlate with it by
{correlation:g}, and smaller models end higher. The rank correlation of losses with those at the
end, within a density, comes to {ranks} of the steps.
How the rules differ shows here; how much they save on trainings of yours does not, for that is the
correlation's doing.

{workers} workers go through a table in one order, each trial at a pace of its own (up to twice
another's), and take the next when one ends. Three ways, with the same rungs and half of a rung
going on:

- nobody is stopped;
- `search.stopping` ([stopping.md](../stopping.md)): the campaign's own scheduler with its notes on
  disk; a training stops one validation after the decision, as a real one does at the latest if
  reports travel faster than validations come;
- Ray Tune's `AsyncHyperBandScheduler` (ASHA), on the loss alone: Tune's class, driven by reports;
  it stops a training at once.

Means over the tables and orders of {seeds}. Compute is a part of what all trainings take to their
ends.
The hypervolume is of loss and density of the trials that finished, up to the 90th percentile of the
losses at the smallest density and to a density of {largest:g}, relative to that of the whole table:
after the whole table, and when so much of its compute was used. The last columns are by how much
the best finished loss at a density is above the best in the table; inf where none finished.

{parts}
"""


if __name__ == "__main__":
    main()
