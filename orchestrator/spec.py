"""What a campaign is asked to do: the typed form of the YAML that a person writes.

One class per block of the file. `spec_io` reads YAML into `CampaignSpec`; everything below the
command line receives these objects and never a raw dictionary. Each numeric default says where
it comes from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.bucket.uri import StorageUri, is_uri
from orchestrator.rules import parse_rule
from orchestrator.spec_after import MeasureSpec, PromoteSpec, SelectSpec
from orchestrator.spec_block import Block, Name, PlacedErrors, check_fields, errors_of, rule
from orchestrator.spec_glue import Glue, with_usual_metric
from orchestrator.spec_method import MethodSpec, merge_method
from orchestrator.spec_resources import Resources
from orchestrator.spec_retention import RetentionSpec
from orchestrator.spec_search import SearchSpec, conflicts, misfits, unreached_rungs, within

# --------------------------------------------------------------------------- data and models


class PythonDocs(Block):
    """The prose that ships with every Python: language reference topics and docstrings."""

    source: Literal["python-docs"]
    classes: int = Field(8, ge=2, le=20)
    """Classification only: how many packages to tell apart, those with the most docstrings."""


class Files(Block):
    """Text files (language modelling) or tab-separated tables with a header (all other kinds)."""

    source: Literal["files"]
    train: str
    """UTF-8 text, or a table: tab-separated, one header line, no quoting."""
    validation: str | None = None
    """When absent, a tenth of the training documents, chosen by content hash."""
    test: str | None = None
    text: list[str] = Field(default=["sentence"], min_length=1, max_length=2)
    """Tables only: the column, or the pair of columns, to read."""
    label: str = "label"
    """Tables only: the column of the class or the score."""


class HubDataset(Block):
    """A data set of the `datasets` library: a hub name, or a local folder or builder."""

    source: Literal["datasets"]
    path: str
    """A hub name, a local folder, or a builder such as `json`."""
    name: str | None = None
    """The data set's configuration."""
    data_files: dict[str, str] | None = None
    splits: dict[Literal["train", "validation", "test"], str] = Field(
        default={"train": "train", "validation": "validation", "test": "test"}
    )
    text: list[str] = Field(default=["text"], min_length=1, max_length=2)
    label: str = "label"
    """The column of the class or the score; language modelling has none."""


Data = Annotated[PythonDocs | Files | HubDataset | Glue, Field(discriminator="source")]


class ModelSpec(Block):
    """A transformers model: `pretrained` (folder or hub name), or `type` with `config`."""

    pretrained: str | None = None
    """A folder, a hub name, or `package:NAME` for weights inside an installed Python package."""
    type: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of the transformers config of `type`; the data decide the vocabulary size."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSpec:
        if (self.pretrained is None) == (self.type is None):
            raise ValueError("exactly one of `pretrained` and `type` must be given")
        return self


class DenseSpec(Block):
    """How the dense reference is trained. `steps: 0` takes a pretrained model as it is."""

    steps: int = Field(ge=0, le=10_000_000)
    """0 takes the model as it is."""
    learning_rate: float = Field(gt=0, le=1)
    """Peak; linear warm-up, then a cosine down to a tenth."""
    batch: int = Field(16, ge=1)
    """Sequences per step over all workers, in every phase of this task."""
    weight_decay: float = Field(0.01, ge=0, lt=1)
    """Of matrices; biases and norms are not decayed."""
    warmup_fraction: float = Field(0.05, ge=0, le=1)
    """Part of the steps, in every phase."""


# --------------------------------------------------------------------------- tasks


class TaskBase(Block):
    name: Name
    """Becomes part of folders, runs and the registered model's name."""
    kind: str
    data: Data
    model: ModelSpec
    dense: DenseSpec
    method: dict[str, Any] = Field(default_factory=dict)
    """Fields of the campaign's `method` that differ for this task."""
    resources: dict[str, Any] = Field(default_factory=dict)
    """Fields of the campaign's `resources` that differ for this task."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between validations during training; the last step always validates."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast in training; gates, multipliers, counts and evaluation stay float32."""
    max_train_examples: int | None = Field(None, ge=1)
    """Cap on the training split."""
    max_eval_examples: int | None = Field(None, ge=1)
    """Caps, by content hash; for language models an example is a window of `context` tokens."""

    @model_validator(mode="after")
    def _kind_of_its_data(self) -> Self:
        if isinstance(self.data, Glue) and self.data.form.kind != self.kind:
            message = f"must be {self.data.form.kind} for GLUE's {self.data.task}, got {self.kind}"
            raise PlacedErrors([rule(("kind",), message)], type(self))
        return self

    @field_validator("method")
    @classmethod
    def _method_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_fields(MethodSpec, value)

    @field_validator("resources")
    @classmethod
    def _resource_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_fields(Resources, value)


class LanguageModelling(TaskBase):
    """Next-token prediction. Evaluation: windows of `context` tokens without overlap."""

    kind: Literal["language-modelling"]
    level: Literal["character", "word", "token"] = "character"
    """`token`: of the pretrained model, or a byte-pair encoding of the training text."""
    context: int = Field(128, ge=2, le=1_000_000)
    """Tokens of a training window, and of an evaluation window."""
    vocab_size: int = Field(8192, ge=2)
    """Upper bound for `word` (rarer words become <unk>) and `token`."""


class LabelledTexts(TaskBase):
    """What tasks with one label per text or pair of texts have in common."""

    max_length: int = Field(128, ge=4, le=100_000)
    """Tokens; longer texts are cut."""
    vocab_size: int = Field(8192, ge=64)
    """For a model built from a config: size of the byte-pair encoding of the training text."""

    @model_validator(mode="before")
    @classmethod
    def _usual_metric(cls, block: Any) -> Any:
        return with_usual_metric(block)


class Classification(LabelledTexts):
    """One class per text or pair of texts."""

    kind: Literal["classification"]
    metric: Literal["accuracy", "f1", "matthews", "accuracy_f1"] = "accuracy"
    """All are recorded; this one decides. `f1` is that of the second of two classes, in numeric or
    alphabetic order, or the mean over more; `accuracy_f1` the mean of both. `source: glue` has the
    metric of its task by default."""


class Regression(LabelledTexts):
    """One score per text or pair of texts, such as how alike two sentences are."""

    kind: Literal["regression"]
    metric: Literal["pearson", "spearman", "pearson_spearman"] = "pearson_spearman"
    """All are recorded, with the mean squared error; this one decides. `pearson_spearman` is the
    mean of both correlations, as GLUE has it for STS-B."""

    @model_validator(mode="after")
    def _has_scores(self) -> Self:
        if isinstance(self.data, PythonDocs):
            message = "must be a source with scores, got 'python-docs', which has classes"
            raise PlacedErrors([rule(("data", "python-docs", "source"), message)], type(self))
        return self


AnyTask = LanguageModelling | Classification | Regression
Task = Annotated[AnyTask, Field(discriminator="kind")]


# --------------------------------------------------------------------------- the campaign


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
        if self.search.ladder is not None:
            message = "needs a folder as storage, where its models find each other's states; got a"
            yield rule(("search", "ladder"), f"{message} bucket")
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
