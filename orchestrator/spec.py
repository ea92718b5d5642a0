"""What a campaign is asked to do: the typed form of the YAML that a person writes.

One class per block of the file. `spec_io` reads YAML into `CampaignSpec`; everything below the
command line receives these objects and never a raw dictionary. Each numeric default says where
it comes from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import Field, field_validator, model_validator

from orchestrator.bucket.uri import StorageUri, is_uri
from orchestrator.rules import parse_rule
from orchestrator.spec_after import MeasureSpec, PromoteSpec, SelectSpec
from orchestrator.spec_block import Block, Name, PlacedErrors, errors_of, rule
from orchestrator.spec_method import MethodSpec, merge_method
from orchestrator.spec_misfits import conflicts, misfits, unreached_rungs
from orchestrator.spec_resources import Resources
from orchestrator.spec_retention import RetentionSpec
from orchestrator.spec_search import SearchSpec
from orchestrator.spec_tasks import AnyTask, Task, TaskBase
from orchestrator.spec_values import within


class TrackingSpec(Block):
    """Where MLflow keeps runs and models."""

    uri: str | None = None
    """MLflow tracking URI; by default SQLite under `storage`, if that is a folder."""
    registry: str | None = None
    """MLflow registry URI; by default the tracking URI."""
    wait_minutes: float = Field(60, ge=0, le=10080)
    """How long a server that was there and does not answer is asked again, while trainings go on;
    then the campaign ends, and the same command goes on. An hour spans a server's upgrade and a
    database's failover."""


class CampaignSpec(Block):
    """A whole campaign. The same spec gives the same trial keys, wherever it runs."""

    name: Name
    """Names the folder, the MLflow experiment and the registered models; not `cache`,
    `mlflow-artifacts` or `mlflow.db`, which lie beside it."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides data order, initial weights, gate noise and the draws of the search."""
    storage: str = "runs"
    """Folder of everything the campaign writes, shared by all nodes of a cluster; or a bucket, such
    as `s3://BUCKET/PREFIX`."""
    tracking: TrackingSpec = TrackingSpec()
    resources: Resources = Resources()
    """Of one trial; a task may differ."""
    tasks: list[Task] = Field(min_length=1)
    """Each has its own dense reference, trials, front and champion."""
    method: MethodSpec = MethodSpec()
    """Common to all tasks; a task may differ."""
    search: SearchSpec
    measure: MeasureSpec = MeasureSpec()
    """How speed is measured."""
    select: SelectSpec = SelectSpec()
    promote: PromoteSpec = PromoteSpec()
    retention: RetentionSpec = RetentionSpec()
    """How much of the storage it may take."""

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value in ("cache", "mlflow-artifacts") or value.startswith("mlflow.db"):
            raise ValueError(
                "must not be cache, mlflow-artifacts or mlflow.db, which lie in the storage beside "
                f"the campaign's folder, got {value!r}"
            )
        return value

    @field_validator("storage")
    @classmethod
    def _place(cls, value: str) -> str:
        if is_uri(value):
            StorageUri.parse(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> CampaignSpec:
        errors: list[dict[str, Any]] = []
        if is_uri(self.storage):
            errors += self._misfits_of_a_bucket()
        for index, name in enumerate(
            self.search.warm_start.campaigns if self.search.warm_start else ()
        ):
            if name == self.name:
                message = "must name earlier campaigns, not this one, got"
                place = ("search", "warm_start", "campaigns", index)
                errors.append(rule(place, f"{message} {name!r}"))
        names = [task.name for task in self.tasks]
        for index, task in enumerate(self.tasks):
            if task.name in names[:index]:
                message = f"task names must differ, got {task.name!r} again"
                errors.append(rule(("tasks", index, task.kind, "name"), message))
            errors += self._shares(index, task) + self._conflicts(index, task)
        errors += self._unmeasured(("select", "require"), self.select.require)
        errors += self._unmeasured(("promote", "gates"), self.promote.gates)
        if errors:
            raise PlacedErrors(errors, type(self))
        return self

    def _misfits_of_a_bucket(self) -> Iterator[dict[str, Any]]:
        """What needs a file system that the machines share, or this machine's own."""
        if self.tracking.uri is None:
            message = (
                "must name an MLflow server, or a database of this machine, if storage is a "
                "bucket, for SQLite needs a file system; got none"
            )
            yield rule(("tracking", "uri"), message)
        if self.retention.budget is not None:
            message = "counts the files of a folder; a bucket has rules of its own for that"
            yield rule(("retention", "budget"), f"{message}, got {self.retention.budget!r}")

    def _shares(self, index: int, task: AnyTask) -> list[dict[str, Any]]:
        """Every worker gets its part of a batch; a fixed number of them equal parts."""
        values = self.resources.model_dump() | task.resources
        if refused := errors_of(Resources, values):
            return [within(("tasks", index, task.kind, "resources"), refused)]
        resources, batch = Resources.model_validate(values), task.dense.batch
        if resources.min_workers is None and batch % resources.workers:
            message = "must be a multiple of resources.workers"
        elif batch < resources.workers:
            message = "must be at least resources.workers"
        else:
            return []
        place = ("tasks", index, task.kind, "dense", "batch")
        return [rule(place, f"{message}, got {batch} and {resources.workers}")]

    def _conflicts(self, index: int, task: AnyTask) -> list[dict[str, Any]]:
        """Fields that are right by themselves and wrong together, such as a kind and its own."""
        method = self.method.model_dump()
        if refused := misfits(method, task.method):
            return [within(("tasks", index, task.kind, "method"), refused)]
        merged = merge_method(method, task.method)
        found = list(conflicts(self.search, merged))
        if not found:
            steps = task.evaluate_every, task.dense.steps
            found = [
                {**error, "msg": f"{error['msg']} (task {task.name})"}
                for error in unreached_rungs(self.search, merged, *steps)
            ]
        return [{**error, "loc": ("search", *error["loc"])} for error in found]

    def _unmeasured(self, place: tuple[str, str], rules: list[str]) -> list[dict[str, Any]]:
        """Rules on a batch that `measure` leaves out: no model could ever pass them."""
        batches = {index: parse_rule(text).batch for index, text in enumerate(rules)}
        message = f"the batch must be one of measure.batch {self.measure.batch}, got"
        return [
            rule((*place, index), f"{message} {batch}")
            for index, batch in batches.items()
            if batch is not None and batch not in self.measure.batch
        ]

    def method_of(self, task: TaskBase, *changes: dict[str, Any], **searched: Any) -> MethodSpec:
        """The method of a task, with changes and the values that a trial searched on top."""
        merged = merge_method(self.method.model_dump(), task.method, *changes, searched)
        return MethodSpec.model_validate(merged)

    def resources_of(self, task: TaskBase) -> Resources:
        return Resources.model_validate(self.resources.model_dump() | task.resources)

    def task(self, name: str) -> AnyTask:
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"no task {name!r:.60}; tasks: {', '.join(t.name for t in self.tasks)}")

    def digest(self) -> str:
        """Hash of everything that decides results; where they are stored does not count."""
        values = self.model_dump(mode="json", exclude={"storage", "tracking", "retention"})
        if not self.measure.int8:  # came later: what is recorded of specs without it stays
            del values["measure"]["int8"]
        for name in ("finalists", "ladder", "stopping", "warm_start"):
            if values["search"][name] is None:
                del values["search"][name]
        resources = values["resources"]
        del resources["resize_minutes"]
        for name in ("min_workers", "labels"):
            if not resources[name]:
                del resources[name]
        for name in ("startup", "batch") if self.search.sampler == "random" else ():
            del values["search"][name]
        if self.search.sampler == "random":
            del values["search"]["sampler"]
        for name in ("epsilon", "reference_drop"):
            if not values["select"][name]:
                del values["select"][name]
        for name in ("load_test", "license", "require_license", "approval"):
            if not values["promote"][name]:
                del values["promote"][name]
        return content_hash(values)


def content_hash(value: Any, length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
