"""Real trainings: one campaign in which every draw ends, one in which draws are stopped."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.stopping.table import Table
from orchestrator.campaign_records import CampaignResult, TaskResult
from orchestrator.front.hypervolume import hypervolume
from orchestrator.layout import Layout
from orchestrator.records import ModelRecord

SPEC = Path(__file__).with_name("campaign.yaml")
EVERY, STOPPED = "every-draw", "stopped-draws"
RUNGS = (0.5, 0.75)
"""Gates close at 0.4, and the model has to recover from its projection."""


@dataclass(frozen=True)
class Campaigns:
    """What came of both."""

    table: Table
    """Of the campaign in which every draw ended."""
    compute: float
    """Validations of the other's draws, relative to the table's."""
    hypervolume: float
    """Of its models, relative to the table's."""
    finished: int
    stopped: int
    same_bits: int
    """Models of the other that are equal to the first one's, bit by bit."""
    lost: list[float]
    """By how much its best loss at each density is above the table's; infinite without one."""


def run(folder: Path) -> Campaigns:
    """Both campaigns, or what is missing of them.

    Args:
        folder: Their storage; what is finished there stays.
    """
    rungs = ", ".join(str(rung) for rung in RUNGS)
    every = _campaign(folder, EVERY)
    other = _campaign(folder, STOPPED, f"search.stopping={{rungs: [{rungs}]}}")
    table = Table.of(every.trials)
    steps = every.trials[0].curve[-1].step
    spent = sum(trial.step for trial in other.stopped) + steps * len(other.trials)
    known = {trial.key: trial for trial in every.trials}
    return Campaigns(
        table=table,
        compute=spent / (steps * len(every.trials)),
        hypervolume=_volume(table, other.trials) / _volume(table, every.trials),
        finished=len(other.trials),
        stopped=len(other.stopped),
        same_bits=sum(
            trial.key in known and trial.export_sha256 == known[trial.key].export_sha256
            for trial in other.trials
        ),
        lost=[
            _best(other.trials, density) - _best(every.trials, density) for density in table.sizes
        ],
    )


def _campaign(folder: Path, name: str, *settings: str) -> TaskResult:
    command = [sys.executable, "-m", "jobs", "run", str(SPEC)]
    for setting in (f"name={name}", f"storage={folder}", *settings):
        command += ["--set", setting]
    subprocess.run(command, check=True)
    (task,) = CampaignResult.load(Layout(folder, name).result).tasks
    return task


def _volume(table: Table, trials: list[ModelRecord]) -> float:
    """By the last validation of each, as the table has it."""
    points = [[_last(trial), trial.config["density"]] for trial in trials]
    return hypervolume(np.array(points).reshape(-1, 2), table.reference)


def _best(trials: list[ModelRecord], density: float) -> float:
    own = [_last(trial) for trial in trials if trial.config["density"] == density]
    return min(own, default=float("inf"))


def _last(trial: ModelRecord) -> float:
    return [point.validation for point in trial.curve if point.validation is not None][-1]
