"""A comparison of methods in MLflow, made up: what the tests of the results page read."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.method_search import TrialPlan
from orchestrator.records import CurvePoint, Densities, Metric, ModelRecord, Size, Speed
from orchestrator.search import plan_trials
from orchestrator.spec import CampaignSpec
from orchestrator.tracking import RunWriter, Tracking
from orchestrator.tracking.reading import LoggedRun, RunReader
from orchestrator.tracking.writer import flat
from orchestrator.trial_keys import dense_key

DATA = "5b1e0d7c9a3f4e21"
BITS = Metric(name="bits_per_character", higher_is_better=False)
ACCURACY = Metric(name="accuracy", higher_is_better=True)
PRINT = {"device": "cpu", "cpu": "Some CPU", "cores": 2, "threads": 2, "dtype": "float32"}
SHAPES = {
    "attn.c_attn": (192, 576),
    "attn.c_proj": (192, 192),
    "mlp.c_fc": (192, 768),
    "mlp.c_proj": (768, 192),
}
BLOCKS = 6
PRUNABLE = BLOCKS * sum(i * o for i, o in SHAPES.values())
OTHER = 850_000
SETTING = {
    "data": {
        "source": "python-docs",
        "splits": {
            "train": {"num_tokens": 1_804_211, "num_characters": 1_804_211},
            "validation": {"num_tokens": 200_104, "num_characters": 200_104},
            "test": {"num_tokens": 199_870, "num_characters": 199_870},
        },
    },
    "hardware": PRINT | {"cluster_cpus": 2.0},
}


def make_spec(storage: str = "/nowhere", **changes: Any) -> CampaignSpec:
    """Four methods at three densities, tuned at one, three seeds."""
    fields: dict[str, Any] = {
        "name": "compare",
        "seed": 7,
        "storage": storage,
        "tasks": [
            {
                "name": "letters",
                "kind": "language-modelling",
                "data": {"source": "python-docs"},
                "model": {"type": "gpt2", "config": {"n_layer": 6, "n_embd": 192}},
                "dense": {"steps": 600, "learning_rate": 2e-3},
            }
        ],
        "method": {"steps": 400},
        "search": {
            "density": [0.5, 0.25, 0.1],
            "tune_at": 0.25,
            "repeats": 3,
            "methods": {
                "adaptive": {
                    "learning_rate": {"log_uniform": [0.01, 0.1]},
                    "trials_per_density": 3,
                },
                "uniform": {"kind": "low-rank"},
                "flop-l0": {
                    "kind": "flop-l0",
                    "learning_rate": {"uniform": [0.1, 0.4]},
                    "trials_per_density": 2,
                },
                "agp": {"kind": "agp"},
            },
        },
    }
    return CampaignSpec.model_validate(fields | changes)


def make_size(density: float) -> Size:
    kept = int(density * PRUNABLE)
    return Size(
        num_parameters=OTHER + kept,
        num_prunable=kept,
        num_bytes=4 * (OTHER + kept) + 9_000,
        macs_per_token=float(OTHER // 10 + kept),
    )


def make_dense(spec: CampaignSpec, metric: Metric = BITS, **changes: Any) -> ModelRecord:
    end = 2.1 if metric is BITS else 0.9
    start = 4.0 if metric is BITS else 0.3
    steps = range(50, spec.tasks[0].dense.steps + 1, 50)
    curve = [
        CurvePoint(
            step=step,
            phase="dense",
            seconds=0.1 * step,
            validation=end + (start - end) * math.exp(-step / 90),
        )
        for step in steps
    ]
    fields: dict[str, Any] = {
        "key": dense_key(spec, spec.tasks[0], DATA),
        "task": spec.tasks[0].name,
        "metric": metric,
        "validation": {metric.name: end},
        "test": {metric.name: end * 1.01},
        "size": make_size(1.0),
        "seed": spec.seed,
        "workers": 1,
        "train_seconds": 61.25,
        "curve": curve,
        "export": "/home/ada/runs/models/dense",
        "export_sha256": "0" * 64,
    }
    return ModelRecord(**(fields | changes))


def make_record(plan: TrialPlan, dense: ModelRecord, **changes: Any) -> ModelRecord:
    """A trial whose figures depend on its plan alone."""
    noise = random.Random(plan.key)
    density, metric = plan.method.density, dense.metric
    sign = -1 if metric.higher_is_better else 1
    costs = {"adaptive": 0.06, "low-rank": 0.11, "flop-l0": 0.09, "agp": 0.03}
    drop = costs[plan.method.kind] * (1 - density) ** 2 / density**0.5
    rate = plan.method.learning_rate or 1e-3
    drop += 0.01 * abs(math.log10(rate / 0.05)) + noise.gauss(0, 0.004)
    quality = dense.quality * (1 + sign * drop)
    size = make_size(density - (0.006 if plan.method.kind == "flop-l0" else 1e-4))
    gated = plan.method.kind != "low-rank"
    fields: dict[str, Any] = {
        "key": plan.key,
        "task": dense.task,
        "metric": metric,
        "validation": {metric.name: quality},
        "test": {metric.name: quality * 1.01 + noise.gauss(0, 0.002)},
        "size": size,
        "seed": plan.seed,
        "workers": 1,
        "train_seconds": round(40 * (2 if gated else 1) * noise.uniform(0.95, 1.05), 3),
        "curve": make_curve(plan, quality),
        "export": "/home/ada/runs/models/x",
        "export_sha256": plan.key * 4,
        "config": plan.method.model_dump(mode="json"),
        "densities": Densities.of(size, dense.size),
        "ranks": {} if plan.method.kind == "agp" else make_ranks(density, noise),
        "projection": {
            "validation_before": quality * (1 + sign * 0.02),
            "validation_after": quality * (1 + sign * 0.05),
            "expected_density": density * 1.03,
        },
        "speed": [make_speed(batch, density, noise) for batch in (1, 32)],
        "method_name": plan.method_name,
    }
    return ModelRecord(**(fields | changes))


def make_curve(plan: TrialPlan, quality: float) -> list[CurvePoint]:
    density, steps = plan.method.density, plan.method.steps
    gated, points = plan.method.gated_steps, []
    has_gates = plan.method.kind in ("adaptive", "flop-l0")
    lag = 0.1 if plan.method.kind == "adaptive" else 0.25
    for step in range(10, steps + 1, 10):
        target = max(density, 1 - (1 - density) * step / (0.75 * gated)) if gated else density
        inside = step <= gated
        expected = min(1.0, target + lag * math.exp(-step / 60)) if inside else None
        points.append(
            CurvePoint(
                step=step,
                phase="anneal" if inside else "finetune",
                seconds=0.1 * step,
                validation=quality if step == steps else None,
                expected_density=expected,
                target_density=target if inside else None,
                lambda_linear=lag**3 * step if inside and has_gates else None,
                lambda_quadratic=lag**4 * step if inside and has_gates else None,
                undecided=max(0.01, lag - lag * step / gated) if inside and has_gates else None,
            )
        )
    return points


def make_ranks(density: float, noise: random.Random) -> dict[str, dict[str, int]]:
    ranks = {}
    for block in range(BLOCKS):
        for kind, (inputs, outputs) in SHAPES.items():
            even = inputs * outputs / (inputs + outputs)
            share = density * noise.uniform(0.4, 1.8) * (0.6 if "attn" in kind else 1.2)
            ranks[f"transformer.h.{block}.{kind}"] = {
                "rank": min(inputs, outputs) if share >= 1 else max(1, int(share * even)),
                "full_rank": min(inputs, outputs),
                "in_features": inputs,
                "out_features": outputs,
                "dense": int(share >= 1),
            }
    return ranks


def make_speed(batch: int, density: float, noise: random.Random) -> Speed:
    ratio = 1 + (1 - density) * (0.4 if batch == 1 else 0.9) * noise.uniform(0.9, 1.1)
    return Speed(
        batch=batch,
        length=128,
        dense_ms=10.0 * batch,
        compressed_ms=10.0 * batch / ratio,
        speedup=ratio,
        speedup_low=ratio * 0.96,
        speedup_high=ratio * 1.05,
        dense_spread_ms=0.3,
        compressed_spread_ms=0.2,
        throughput_dense=12_800.0,
        throughput_compressed=12_800.0 * ratio,
        repeats=9,
        fingerprint=dict(PRINT),
    )


@dataclass
class FakeReader:
    """A `RunReader` on records in memory."""

    spec: CampaignSpec
    metric: Metric = BITS
    unfinished: Collection[str] = ()
    """Keys of plans that have not ended; `all` leaves the dense reference alone."""
    failed: dict[str, str] = field(default_factory=dict)
    """From the key of a plan to the reason."""
    change: Callable[[TrialPlan, ModelRecord], ModelRecord] = lambda plan, record: record
    logged: list[LoggedRun] = field(default_factory=list)
    records: dict[str, ModelRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dense = make_dense(self.spec, self.metric)
        self._log("task:letters", "FINISHED", None, {"spec_hash": self.spec.digest()}, None)
        self._log(self.dense.key, "FINISHED", self.dense, {"kind": "dense"}, {"seed": 7})
        ended: set[str] = set()
        while new := [p for p in self.plans() if p.key not in ended]:
            for plan in new:
                ended.add(plan.key)
                self._trial(plan)

    def plans(self) -> list[TrialPlan]:
        quality = {key: record.quality for key, record in self.records.items()}
        higher = self.metric.higher_is_better
        return plan_trials(self.spec, self.spec.tasks[0], DATA, quality, self.failed, higher)

    def _trial(self, plan: TrialPlan) -> None:
        if plan.key in self.unfinished or "all" in self.unfinished:
            return
        tags = {"kind": "trial", "method_name": plan.method_name}
        params = {"seed": plan.seed, "method_name": plan.method_name}
        params |= {"method": plan.method.model_dump()}
        if plan.key in self.failed:
            tags["failure"] = self.failed[plan.key]
            self._log(plan.key, "FAILED", None, tags, params)
        else:
            record = self.change(plan, make_record(plan, self.dense))
            self._log(plan.key, "FINISHED", record, tags, params)

    def _log(
        self, key: str, status: str, record: ModelRecord | None, tags: dict[str, str], params: Any
    ) -> None:
        task = self.spec.tasks[0]
        common = {"task": task.name, "data_hash": DATA, "dense": task.dense.model_dump()}
        # a task's own run has no params
        given = {} if params is None else {k: str(v) for k, v in flat(common | params).items()}
        run = LoggedRun(
            run_id=f"run-{len(self.logged)}",
            key=key,
            status=status,
            started=1.795e9 + len(self.logged),
            ended=1.795e9 + 60 * len(self.logged),
            params=given,
            tags={"version.torch": "2.13.0", "version.ray": "2.60.0"} | tags,
        )
        self.logged.append(run)
        if record is not None:
            self.records[key] = record

    def runs(self) -> list[LoggedRun]:
        return self.logged

    def record(self, run: LoggedRun) -> ModelRecord | None:
        return self.records.get(run.key)

    def setting(self, run: LoggedRun) -> dict[str, Any]:
        return SETTING


def store_campaign(reader: FakeReader, tracking: Tracking) -> None:
    """The same runs in a real store, as a campaign writes them."""
    parent = tracking.task_run("compare", "letters", "", {"spec_hash": reader.spec.digest()})
    RunWriter(tracking.uri, parent).setting(SETTING)
    for run in reader.logged[1:]:
        run_id = tracking.model_run(run.key, parent, run.key, dict(run.params), dict(run.tags))
        writer = RunWriter(tracking.uri, run_id)
        if run.key in reader.records:
            record = replace(reader.records[run.key], mlflow_run_id=run_id)
            reader.records[run.key] = record
            writer.record_file(record)
        writer.end(run.status, run.tags.get("failure"))


__all__ = ["FakeReader", "RunReader", "make_dense", "make_record", "make_spec", "store_campaign"]
