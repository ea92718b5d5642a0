"""The page: tables of both kinds, and what they are of."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from statistics import fmean

from benchmarks.stopping.campaign import RUNGS, Campaigns
from benchmarks.stopping.table import BUDGETS, UNITS, Table
from orchestrator.wording import plural

Rows = Mapping[str, Sequence[Sequence[float]]]
"""Way -> `figures` of each order."""


def section(name: str, table: Table, rows: Rows) -> str:
    """A table in Markdown, means over orders."""
    budgets = " | ".join(f"at {budget:.0%}" for budget in BUDGETS)
    densities = " | ".join(f"{density:g}" for density in table.sizes)
    width = 4 + len(BUDGETS) + len(table.sizes)
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


def ranks(tables: Sequence[Table], rungs: Sequence[float]) -> str:
    """How early losses order trials as the last ones do."""
    found = [
        f"{fmean(t.rank_correlation(round(rung * t.units)) for t in tables):.2f} at {rung:g}"
        for rung in rungs
    ]
    return ", ".join(found)


def synthetic(
    trials: int,
    workers: int,
    seeds: int,
    model: Mapping[str, float],
    tables: Sequence[Table],
    parts: Sequence[str],
) -> str:
    """What is written of curves of a model."""
    return SYNTHETIC.format(
        trials=trials,
        workers=workers,
        seeds=plural(seeds, "seed"),
        units=UNITS,
        densities=", ".join(f"{density:g}" for density in tables[0].sizes),
        ranks=ranks(tables, (0.1, 0.2, 0.4, 0.8)),
        parts="\n\n".join(parts),
        **model,
    )


def trained(found: Campaigns, orders: int, workers: int, part: str) -> str:
    """What is written of real trainings."""
    rung_text = " and ".join(f"{rung:g}" for rung in RUNGS)
    lost = ", ".join(
        f"{above:.4f} at {density:g}"
        for density, above in zip(found.table.sizes, found.lost, strict=True)
    )
    libraries = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch"))
    return TRAINED.format(
        trials=len(found.table.densities),
        rungs=rung_text,
        ranks=ranks([found.table], RUNGS),
        where=f"{date.today()}, {platform.machine()}, {libraries}",
        orders=orders,
        workers=workers,
        part=part,
        compute=found.compute,
        volume=found.hypervolume,
        finished=found.finished,
        stopped=found.stopped,
        same=found.same_bits,
        lost=lost,
    )


HEAD = """# Stopping early

Written by

    {command}

Three ways, with the same rungs and half of a rung going on:

- nobody is stopped;
- `search.stopping` ([stopping.md](../stopping.md)): the campaign's own scheduler with its notes on
  disk; a training stops one validation after the decision, as a real one does at the latest if
  reports travel faster than validations come;
- Ray Tune's `AsyncHyperBandScheduler` (ASHA), on the loss alone: Tune's class, driven by reports;
  it stops a training at once.

Compute is a part of what all trainings take to their ends. The hypervolume is of loss and density
of the trials that finished, up to the 90th percentile of the losses at the smallest density and
to a fifth more than the largest density, relative to that of all trials: in the end, and when so
much of all compute was used. The last columns are by how much the best finished loss at a density
is above the best there is; inf where none finished.
"""

TRAINED = """
## Trained curves

A real search (benchmarks/stopping/campaign.yaml) on {where}: {trials} draws of a character model
on the prose that ships with Python, adaptive ranks, two learning rates and the weight of
distillation searched over two decades and three values. The rank correlation of losses with those
at the end, within a density, comes to {ranks} of the steps. Gates close at 0.4.

Every draw was trained to its end once; then the three ways went through these curves in {orders}
orders with {workers} workers (means):

{part}

The same campaign with `search.stopping` for real, two trainings side by side: {finished} draws
finished and {stopped} were stopped, {compute:.1%} of the steps were trained, hypervolume
{volume:.4f}; the best loss at each density is above that without stopping by {lost}. Of the
finished models {same} have the bits that they have without it.
"""

SYNTHETIC = """
## Synthetic curves

No training was run for these: {trials} trials over the densities {densities}, each a curve of
{units} validations, loss = a + b t^-c + noise of {noise:g}. A trial's quality moves a, with a
tail to the worse; the deviates of b and c correlate with it by {correlation:g}, and smaller
models end higher. The rank correlation of losses with those at the end, within a density, comes
to {ranks} of the steps. How the rules differ shows here; how much they save on trainings of yours
does not, for that is the correlation's doing.

{workers} workers go through a table in one order, each trial at a pace of its own (up to twice
another's), and take the next when one ends. Means over the tables and orders of {seeds}.

{parts}
"""
