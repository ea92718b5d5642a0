"""The plan of a campaign as plain values, kept as plan.json in its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowrank.plain_json import read_json, write_json
from orchestrator.layout import Layout, storage_error
from orchestrator.plan.disk import TaskBytes
from orchestrator.plan.figures import Range
from orchestrator.plan.hours import TaskHours
from orchestrator.plan.profile import ProfileError
from orchestrator.spec import CampaignSpec
from orchestrator.typed import typed

VERSION = 1
PROBED, GIVEN, COUNTED = "probe", "profile", "counts"
"""Where a plan's costs are from; of the last there are bytes and no hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPlan:
    """One task."""

    task: str
    kind: str
    data_hash: str
    """Of its prepared data, which lie in the cache under this name."""
    trials: int
    rounds: list[int]
    """Trials of each."""
    workers: int
    side_by_side: int
    steps: dict[str, int]
    """Of all models, by phase."""
    hours: TaskHours | None
    bytes: TaskBytes
    memory_bytes: int
    """Of a worker at its peak; 0 if that is not known."""
    device_bytes: int
    """The same on its GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A campaign before it starts."""

    version: int
    name: str
    spec_hash: str
    made: str
    source: str
    """`probe`, `profile` or `counts`."""
    machine: dict[str, Any]
    """Where the costs were found."""
    machines: str
    """Where the campaign is to run, in words."""
    tasks: list[TaskPlan]
    seconds: Range | None
    """From start to end."""
    cpu_seconds: Range | None
    """CPUs times seconds that they are held by workers."""
    gpu_seconds: Range | None
    bytes: dict[str, int]
    """That stay, by `disk.KEPT_PARTS`."""
    passing_bytes: int
    """Most that are there for a while."""
    warnings: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    at_most: bool = False
    """Whether draws may be stopped early (`search.stopping`), so that steps, time and compute are
    upper ends."""

    @property
    def num_models(self) -> int:
        return sum(1 + task.trials for task in self.tasks)

    def save(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(self))
        except OSError as error:
            raise storage_error(path, error) from error

    @classmethod
    def load(cls, path: Path) -> Plan | None:
        """The plan that is kept there; None without one.

        Raises:
            ProfileError: It is damaged, or of another version.
        """
        if not path.exists():
            return None
        try:
            return typed(cls, read_json(path))
        except (OSError, ValueError) as error:
            raise ProfileError(f"{path}: cannot be read: {error}") from error


def layout_of(spec: CampaignSpec) -> Layout:
    return Layout.of(spec.storage, spec.name)


def plan_path(layout: Layout) -> Path:
    return layout.root / "plan.json"
