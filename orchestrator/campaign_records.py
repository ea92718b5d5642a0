"""What a campaign leaves behind besides its models, as plain values with a JSON form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowrank.plain_json import write_json
from orchestrator.front.figures import AcrossTasks, NoisyFront
from orchestrator.records import ModelRecord, RecordError, check_metric, checked, read_record


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedTrial:
    """A trial that ended without a model."""

    key: str
    task: str
    config: dict[str, Any]
    reason: str
    method_name: str = ""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppedTrial:
    """A draw that was stopped before its end because others were ahead of it (`search.stopping`);
    it has no model and is no failure."""

    key: str
    task: str
    config: dict[str, Any]
    method_name: str
    seed: int
    rung: float
    """Part of its steps at which it was judged."""
    step: int
    """At which it stopped."""
    total_steps: int
    """That it would have had."""
    reason: str

    @property
    def saved_steps(self) -> int:
        return self.total_steps - self.step


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which model a task's campaign picked, and why."""

    key: str | None
    sentence: str
    """For people, with the numbers that decided."""
    front: list[str]
    """Keys on the Pareto front (quality, size, latency), best quality first."""
    passed: list[str]
    """Keys that met every `require` rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """What the registry did with the chosen model."""

    model: str
    version: str | None
    promoted: bool
    sentence: str
    checks: list[dict[str, Any]] = field(default_factory=list)
    """Per gate: rule, value, passed."""
    reproduced: dict[str, float] = field(default_factory=dict)
    """Metrics of the downloaded artifact on test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """Everything the report shows of one task."""

    task: str
    kind: str
    dense: ModelRecord
    trials: list[ModelRecord]
    failed: list[FailedTrial]
    choice: Choice
    promotion: Promotion | None = None
    data: dict[str, Any] = field(default_factory=dict)
    """Source, sizes of the splits, content hash."""
    noisy_front: NoisyFront | None = None
    """The front with its uncertainty; None in results of earlier versions, or without trials."""
    stopped: list[StoppedTrial] = field(default_factory=list)
    """Early, by `search.stopping`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignResult:
    name: str
    spec_hash: str
    started: str
    seconds: float
    tasks: list[TaskResult]
    hardware: dict[str, Any]
    across: list[AcrossTasks] = field(default_factory=list)
    """Settings or methods over all tasks, if there are several."""

    def save(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> CampaignResult:
        """Raises RecordError, with the path, for a file that is damaged or missing."""
        try:
            result = checked("result", cls, read_record(path))
            for task in result.tasks:
                for record in (task.dense, *task.trials):
                    check_metric(record)
            return result
        except RecordError as error:
            raise RecordError(f"{path}: {error}; `lowrank run` writes it again") from error
