"""The ways through a table: nobody stopped, a campaign's own rule, Ray Tune's."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from benchmarks.stopping.table import Replay, Table
from orchestrator.layout import Layout
from orchestrator.method_search import TrialPlan
from orchestrator.spec_method import MethodSpec
from orchestrator.spec_stopping import StoppingSpec
from orchestrator.stopping.notes import Notes
from orchestrator.stopping.rungs import Rungs
from orchestrator.stopping.scheduler import FrontScheduler
from orchestrator.stopping.signals import Signals, Stop

Answer = Callable[[int, int, float], bool]
"""Trial, validation from 1, loss -> whether its training goes on."""
WAYS = ("nobody stopped", "search.stopping", "ASHA on the loss")


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
            stops[trial] = min(unit + late, table.units)
        if unit == table.units:
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


def ours(table: Table, rungs: Sequence[float], folder: Path) -> Answer:
    """`search.stopping`: the scheduler of a campaign, notes and all."""
    kind = "adaptive" if table.gated else "low-rank"
    share = {"gated_fraction": table.gated / table.units} if table.gated else {}
    methods = {
        density: MethodSpec(kind=kind, density=density, steps=table.units, **share)
        for density in table.sizes
    }
    plans = [
        TrialPlan(
            key=f"{trial:06d}",
            name=str(trial),
            method_name=kind,
            method=methods[float(density)],
            searched={},
            seed=0,
            repeat=0,
        )
        for trial, density in enumerate(table.densities)
    ]
    seen = Rungs(StoppingSpec(rungs=list(rungs)), False, Notes(Layout(folder, "replayed"), "table"))
    seen.plan(plans, {})
    told = Told()
    scheduler = FrontScheduler(seen, told)

    def answer(trial: int, unit: int, loss: float) -> bool:
        key = plans[trial].key
        launch = SimpleNamespace(config={"launch": SimpleNamespace(key=key)})
        phase = "finetune" if unit > table.gated else "anneal"
        report = {"step": unit, "total_steps": table.units, "phase": phase, "validation": loss}
        scheduler.on_trial_result(None, launch, report)
        return key not in told.stopped

    return answer


def asha(table: Table, rungs: Sequence[float]) -> Answer:
    """Ray Tune's own, on the loss, with the same rungs and the same half."""
    scheduler = AsyncHyperBandScheduler(
        time_attr="step",
        metric="validation",
        mode="min",
        max_t=table.units,
        grace_period=round(rungs[0] * table.units),
        reduction_factor=2,
    )
    trials = [SimpleNamespace(trial_id=str(trial)) for trial in range(len(table.densities))]
    for trial in trials:
        scheduler.on_trial_add(None, trial)

    def answer(trial: int, unit: int, loss: float) -> bool:
        result: dict[str, Any] = {"step": unit, "validation": loss}
        if unit == table.units:
            scheduler.on_trial_complete(None, trials[trial], result)
            return True
        decision = scheduler.on_trial_result(None, trials[trial], result)
        return decision != TrialScheduler.STOP

    return answer


def compare(table: Table, rungs: Sequence[float], workers: int, seed: int) -> dict[str, Replay]:
    """The three ways through one table, in one order."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            WAYS[0]: replay(table, workers, seed, lambda *_: True, 0),
            # a training hears of it at its next validation; Tune's own is spared that
            WAYS[1]: replay(table, workers, seed, ours(table, rungs, Path(folder)), 1),
            WAYS[2]: replay(table, workers, seed, asha(table, rungs), 0),
        }
