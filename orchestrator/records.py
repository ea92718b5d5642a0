"""What a dense reference and a trial leave behind, as plain values with a JSON form."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowrank.counting import Densities, Size
from lowrank.plain_json import parse_json, read_json, write_json
from orchestrator.errors import CampaignError
from orchestrator.typed import typed

MET = 0.002
"""A density that is exceeded by no more counts as met: rounding of ranks in small layers."""
RECORD = "record.json"
"""Beside the weights of every exported model."""


class RecordError(CampaignError, ValueError):
    """A record is damaged, or none."""


def excess_of(asked: float, realized: float | None, budget: str) -> float:
    """By how much a density is above what was asked; 0 up to `MET`, if it is not known, and for
    other budgets than parameters."""
    if realized is None or budget != "parameters":
        return 0.0
    return realized - asked if realized - asked > MET else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """The task's own figure of quality."""

    name: str
    """For example `bits_per_character`, `perplexity_token`, `accuracy`."""
    higher_is_better: bool

    def drop(self, dense: float, compressed: float) -> float:
        """Relative loss of quality against dense; negative when the compressed model is better.

        `(compressed - dense) / dense` for a loss, `(dense - compressed) / dense` for a score.
        """
        if not (math.isfinite(dense) and math.isfinite(compressed)) or dense == 0:
            return math.nan
        change = (compressed - dense) / abs(dense)
        return -change if self.higher_is_better else change


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """One shape, dense and compressed interleaved on the same machine in the same process."""

    batch: int
    length: int
    dense_ms: float
    """Median latency of one forward pass, milliseconds."""
    compressed_ms: float
    speedup: float
    """Median over the pairs of dense time / compressed time."""
    speedup_low: float
    speedup_high: float
    """First and third quartile of the paired ratios."""
    dense_spread_ms: float
    compressed_spread_ms: float
    """Interquartile ranges."""
    throughput_dense: float
    throughput_compressed: float
    """Tokens per second."""
    repeats: int
    fingerprint: dict[str, Any]
    """Hardware, threads, dtype and versions: figures of different fingerprints do not compare."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8:
    """A model with its linear layers in 8-bit integers (`lowrank.int8`), on a CPU."""

    test: dict[str, float]
    """Metrics on test, as far as they are finite."""
    num_bytes: int
    """What the weights file would have."""
    speed: list[Speed]
    """Against the dense reference in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """What training looked like at one step. Absent values are None, never NaN."""

    step: int
    phase: str
    """`dense`, `anneal`, `hold`, `finetune` or `from-scratch`."""
    seconds: float
    """Since the first step of this model's training."""
    train_loss: float | None = None
    """Nats (or the task's training loss)."""
    validation: float | None = None
    """The task's metric on validation."""
    learning_rate: float | None = None
    expected_density: float | None = None
    target_density: float | None = None
    lambda_linear: float | None = None
    lambda_quadratic: float | None = None
    undecided: float | None = None
    """Part of the gates that are neither open nor shut."""
    extras: dict[str, float] = field(default_factory=dict)
    """What else a method follows, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LadderFacts:
    """Of a model that is one of several from one descent through their densities."""

    trunk: str
    """Common to the models of the ladder: the key of its trunk, if it has one."""
    densities: list[float]
    """Of the ladder, from high to low."""
    shared_steps: int
    """Of its training, which models of the densities above are charged with."""
    trunk_steps: int
    """From there on with gates to this model's density; in a chain all steps of the model."""
    branch_steps: int
    """At its density; 0 in a chain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    """A finished model: the dense reference of a task, or one trial."""

    key: str
    """Hash of task, configuration, seed and data: what the resume looks for."""
    task: str
    metric: Metric
    validation: dict[str, float]
    test: dict[str, float]
    size: Size
    seed: int
    workers: int
    train_seconds: float
    curve: list[CurvePoint]
    export: str
    """Absolute folder of the exported model."""
    export_sha256: str
    config: dict[str, Any] = field(default_factory=dict)
    """The method as it ran; empty for a dense reference."""
    densities: Densities | None = None
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)
    """Per layer: rank, full_rank, in_features, out_features, dense (1 if nothing was removed, else
    0); and factored, 1, for one that is two factors in the dense model too."""
    projection: dict[str, float] = field(default_factory=dict)
    """Validation metric just before and just after the projection, and the expected density."""
    speed: list[Speed] = field(default_factory=list)
    mlflow_run_id: str | None = None
    model_uri: str | None = None
    """Of the logged MLflow model."""
    method_name: str = ""
    """Which of the campaign's methods; empty for a dense reference."""
    int8: Int8 | None = None
    """If `measure.int8` asked for it."""
    rate_factor: float = 1.0
    """On the learning rates: below 1 if the training diverged and was taken up again."""
    ladder: LadderFacts | None = None
    """None for a model with a training of its own."""
    worlds: list[tuple[int, int]] = field(default_factory=list)
    """From which step on how many workers trained, if the number changed on the way; `workers` is
    the last one."""
    warm_start: str = ""
    """`CAMPAIGN/RUN` of the trial of an earlier campaign whose settings it has."""
    finished: float | None = None
    """When it was recorded, in seconds since the epoch; None in records of earlier versions."""

    @property
    def quality(self) -> float:
        """Validation figure: what search, selection and fronts look at."""
        return self.validation[self.metric.name]

    @property
    def target_density(self) -> float:
        return float(self.config["density"])

    @property
    def excess(self) -> float:
        """By how much the model is larger than it was to be, in density; 0 up to `MET`. Only a
        method without an exact projection is (`faithful`); other budgets than parameters were
        checked where they were counted."""
        if self.densities is None:
            return 0.0
        budget = self.config.get("budget", "parameters")
        return excess_of(self.target_density, self.densities.prunable, budget)

    @property
    def preference(self) -> tuple[float, float]:
        """Of models that were to have one size the least is the best: sizes that were missed are
        not compared by quality."""
        sign = -1 if self.metric.higher_is_better else 1
        return self.excess, sign * self.quality

    def speedup(self, batch: int | None = None) -> float:
        """Of the shape with this batch, by default the largest measured; NaN if not measured."""
        rows = [s for s in self.speed if batch is None or s.batch == batch]
        return max(rows, key=lambda s: s.batch).speedup if rows else math.nan

    def latency_ms(self, batch: int | None = None) -> float:
        rows = [s for s in self.speed if batch is None or s.batch == batch]
        return max(rows, key=lambda s: s.batch).compressed_ms if rows else math.nan

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ModelRecord:
        """Raises RecordError for anything but what `to_json` wrote, now or in earlier versions."""
        return cls.from_dict(_parsed("record", text))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelRecord:
        record = checked("record", cls, raw)
        check_metric(record)
        return record

    def save(self, path: Path) -> None:
        """Write whole or not at all: a killed process leaves the former file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> ModelRecord:
        """Raises RecordError, with the path, for a file that is damaged or missing."""
        try:
            return cls.from_dict(read_record(path))
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from error


def read_record(path: Path) -> Any:
    """What JSON gave, to be checked. Raises RecordError for a file that cannot be read."""
    try:
        return read_json(path, max_bytes=None)  # a campaign's size is the spec's business
    except OSError as error:
        raise RecordError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RecordError(f"is not JSON: {error}") from error


def _parsed(what: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise RecordError(f"{what}: is not JSON: {error}") from error


def checked(what: str, kind: Any, raw: Any) -> Any:
    """A value of a record's class, every field of its type.

    Raises:
        RecordError: It is none.
    """
    try:
        return typed(kind, raw, what)
    except ValueError as error:
        raise RecordError(str(error)) from error


def check_metric(record: ModelRecord) -> None:
    """Raise RecordError for a model whose quality nobody knows."""
    if record.metric.name not in record.validation:
        raise RecordError(
            f"record: validation must hold the task's metric {record.metric.name!r:.60}, "
            f"got {sorted(record.validation)[:5]}"
        )
