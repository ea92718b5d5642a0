"""What was probed, and where: a file that another machine can plan with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lowrank.plain_json import read_json, write_json
from orchestrator.data.prepare import PreparedData
from orchestrator.errors import CampaignError
from orchestrator.layout import storage_error
from orchestrator.plan.figures import JobCost, Range
from orchestrator.plan.overhead import Overhead
from orchestrator.plan.work import DENSE, ModelWork
from orchestrator.spec import Resources, content_hash
from orchestrator.spec_tasks import AnyTask
from orchestrator.typed import typed

VERSION = 2


class ProfileError(CampaignError, ValueError):
    """A profile is damaged, or of something else than what is planned."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskProfile:
    """One task on one machine."""

    described: dict[str, Any]
    """What the costs depend on (`describe_task`)."""
    costs: list[JobCost]
    timing_s: Range
    """Of one model's speed, every batch size, against the dense one."""
    int8_s: Range
    """Of one model in 8-bit integers; 0 if that was not asked for."""
    logged_bytes: int
    """That a model has in MLflow besides what its export has."""
    world: int
    """Processes that trained together, and share the work of an evaluation."""
    groups: int
    """That trained side by side."""

    @property
    def dense(self) -> JobCost:
        return next(cost for cost in self.costs if cost.setting == DENSE)

    def of(self, work: ModelWork) -> list[JobCost]:
        """The costs that stand for a model: of its setting, or else of its kind of method."""
        exact = [cost for cost in self.costs if cost.setting == work.setting]
        kind = work.method.get("kind")
        alike = [cost for cost in self.costs if kind and cost.setting.startswith(f"{kind}-")]
        return exact or [c for c in alike if c.setting == alike[0].setting]


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Of a machine."""

    version: int
    machine: dict[str, Any]
    """`lowrank.timing.fingerprint`, and memory in bytes."""
    overhead: Overhead
    tasks: dict[str, TaskProfile] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        try:
            write_json(path, asdict(self))
        except OSError as error:
            raise storage_error(path, error) from error

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Raises ProfileError, with the path, for anything that `save` did not write."""
        try:
            raw = read_json(path)
            if isinstance(raw, dict) and raw.get("version") != VERSION:
                raise ProfileError(
                    f"{path}: a profile's version must be {VERSION}, got {raw.get('version')!r:.20}"
                )
            return typed(cls, raw)
        except ProfileError:
            raise
        except OSError as error:
            raise ProfileError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise ProfileError(f"{path}: cannot be read: {error}") from error


def describe_task(
    task: AnyTask, resources: Resources, data: PreparedData, model: nn.Module
) -> dict[str, Any]:
    """What a task's costs depend on besides the machine; JSON.

    Args:
        task: Of the spec.
        resources: Its own.
        data: Prepared.
        model: The dense one, trained or not.
    """
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    splits = data.info["splits"]
    return {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "shapes": content_hash(shapes, 8),
        "length": task.context if task.kind == "language-modelling" else task.max_length,
        "batch per worker": task.dense.batch // resources.workers,
        "precision": task.precision,
        "cpus_per_worker": resources.cpus_per_worker,
        "on GPUs": resources.gpus_per_worker > 0,
        "validation tokens": splits["validation"]["num_tokens"],
        "test tokens": splits["test"]["num_tokens"],
    }


def check_profile(
    profile: Profile, name: str, described: dict[str, Any], work: list[ModelWork]
) -> TaskProfile:
    """The part of a profile that speaks of a task.

    Raises:
        ProfileError: It has none, or one of other shapes, or lacks a method.
    """
    found = profile.tasks.get(name)
    if found is None:
        known = ", ".join(sorted(profile.tasks)) or "none"
        raise ProfileError(f"the profile has no task {name!r}; it has: {known}")
    for field_name, value in described.items():
        probed = found.described.get(field_name)
        if probed != value:
            raise ProfileError(
                f"the profile's task {name!r} has {field_name} {probed}, the spec {value}: "
                "probe it again with --save-profile"
            )
    for each in work:
        if not found.of(each):
            raise ProfileError(
                f"the profile's task {name!r} has no method of kind {each.method.get('kind')!r}: "
                "probe it again with --save-profile"
            )
    return found
