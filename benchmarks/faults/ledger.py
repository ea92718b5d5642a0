"""What happened, and what was found afterwards."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.campaign_records import CampaignResult, TaskResult
from orchestrator.front.dominance import pareto_front
from orchestrator.layout import Layout
from orchestrator.records import ModelRecord
from orchestrator.tracking.writer import mlflow_client


@dataclass(frozen=True, kw_only=True)
class Fault:
    kind: str
    at: float
    """Unix time."""
    what: str


class Ledger:
    """Faults, and starts and ends of drivers, each on a line of a file as it happens."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_text("")
        self.faults: list[Fault] = []
        self.codes: list[int] = []
        self.waits: dict[str, list[float]] = {}
        """Kind -> seconds from each fault to the next sign of the campaign."""

    def add(self, fault: Fault) -> int:
        """How many there are with it."""
        self.faults.append(fault)
        self._write({"fault": asdict(fault)})
        return len(self.faults)

    def start(self, command: Sequence[str]) -> None:
        self._write({"start": time.time(), "command": list(command)})

    def end(self, code: int) -> None:
        self.codes.append(code)
        self._write({"end": time.time(), "code": code})

    def went_on(self, fault: Fault, seconds: float) -> None:
        self.waits.setdefault(fault.kind, []).append(seconds)
        self._write({"fault_at": fault.at, "went_on_after": seconds})

    def _write(self, row: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@dataclass(kw_only=True)
class Found:
    """One disturbed campaign beside the undisturbed one."""

    name: str
    seconds: float
    """From its first start to its last end."""
    planned: int = 0
    finished: int = 0
    same_bits: int = 0
    duplicated: int = 0
    lost: int = 0
    open_runs: int = 0
    steps_twice: int = 0
    """Steps that a curve in MLflow has more than once."""
    same_fronts: int = 0
    same_champions: int = 0
    tasks: int = 0
    problems: list[str] = field(default_factory=list)


def compare(folder: Path, undisturbed: str, name: str, seconds: float, uri: str) -> Found:
    """Every model, every run, each front and each champion."""
    before, after = (_result(folder, each) for each in (undisturbed, name))
    found = Found(name=name, seconds=seconds, tasks=len(before.tasks))
    for one, other in zip(before.tasks, after.tasks, strict=True):
        _models(found, one, other)
        if _front(one) == _front(other):
            found.same_fronts += 1
        else:
            found.problems.append(f"{name}: {one.task}: another front")
        if one.choice.key == other.choice.key and _promoted(one) == _promoted(other):
            found.same_champions += 1
        else:
            found.problems.append(f"{name}: {one.task}: another champion")
    _runs(found, uri)
    return found


def _result(folder: Path, name: str) -> CampaignResult:
    return CampaignResult.load(Layout(folder / "runs", name).result)


def _models(found: Found, one: TaskResult, other: TaskResult) -> None:
    models = {record.key: record for record in (other.dense, *other.trials)}
    for record in (one.dense, *one.trials):
        found.planned += 1
        same = models.pop(record.key, None)
        if same is None:
            found.lost += 1
            found.problems.append(f"{found.name}: {record.key} is lost")
            continue
        found.finished += 1
        if _figures(same) == _figures(record):
            found.same_bits += 1
        else:
            found.problems.append(f"{found.name}: {record.key} is another model")
    found.problems += [f"{found.name}: {key} was not planned" for key in models]
    found.problems += [f"{found.name}: {trial.key}: {trial.reason}" for trial in other.failed]


def _figures(record: ModelRecord) -> tuple[Any, ...]:
    return record.export_sha256, record.validation, record.test, record.size


def _front(result: TaskResult) -> set[str]:
    """By quality and size: latency depends on what else the machine did."""
    sign = -1.0 if result.dense.metric.higher_is_better else 1.0
    losses = np.array([(sign * r.quality, r.size.num_parameters) for r in result.trials])
    on_front = pareto_front(losses)
    return {r.key for r, on in zip(result.trials, on_front, strict=True) if on}


def _promoted(result: TaskResult) -> bool:
    return result.promotion is not None and result.promotion.promoted


def _runs(found: Found, uri: str) -> None:
    client = mlflow_client(uri)
    experiment = client.get_experiment_by_name(found.name)
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    for key, count in Counter(run.data.tags["lowrank.key"] for run in runs).items():
        if count > 1:
            found.duplicated += count - 1
            found.problems.append(f"{found.name}: {count} runs for {key}")
    for run in runs:
        if run.info.status != "FINISHED":
            found.open_runs += 1
            found.problems.append(f"{found.name}: run {run.info.run_name} is {run.info.status}")
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "loss/train")]
        found.steps_twice += len(steps) - len(set(steps))
    if found.steps_twice:
        found.problems.append(f"{found.name}: {found.steps_twice} steps were written twice")
