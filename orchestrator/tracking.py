"""The only module that writes MLflow runs.

Explicit client, explicit ids: no fluent run is left active anywhere, and every writer can be in
another process. Whoever opens the store first is the campaign's driver, before any worker starts,
because a fresh SQLite store does not survive being created by several processes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.errors import TrackingError, redact_uri
from orchestrator.records import RECORD, CurvePoint, Int8, ModelRecord, Speed

logger = logging.getLogger(__name__)

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

CURVE_KEYS = {
    "train_loss": "loss/train",
    "learning_rate": "optimizer/learning_rate",
    "expected_density": "density/expected",
    "target_density": "density/target",
    "lambda_linear": "lagrangian/lambda_linear",
    "lambda_quadratic": "lagrangian/lambda_quadratic",
    "undecided": "density/undecided_gates",
    "seconds": "time/train_s",
}
"""CurvePoint field -> MLflow metric. `validation` becomes `quality/validation_<metric>`, and one of
`extras` becomes `extras/<name>`."""


MOST_PARAMS = 100
"""In one request; the server's limit."""
SETTING = "setting.json"
"""On the task's run: what its models have in common, for who reads the records alone."""


def default_tracking_uri(storage: str) -> str:
    """SQLite under the storage folder."""
    return f"sqlite:///{Path(storage).absolute() / 'mlflow.db'}"


def experiment_id(uri: str, experiment: str) -> str | None:
    """The id that MLflow's pages use for an experiment, or None."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=uri).get_experiment_by_name(experiment)
    return None if found is None else str(found.experiment_id)


class Tracking:
    """A tracking store, and one campaign's experiment in it.

    Args:
        uri: MLflow tracking URI.
        experiment: Name; created if needed.
        artifacts: Folder for artifacts when the store is a local database; a server has its own.

    Raises:
        TrackingError: The store cannot be reached or created.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        # MLflow's own default retries for minutes before it says that nobody answers
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self.uri = uri
        local = uri.startswith("sqlite:")
        try:
            self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                location = (artifacts / experiment).absolute().as_uri() if local else None
                self.experiment_id = self.client.create_experiment(experiment, location)
            elif found.lifecycle_stage != "active":
                raise TrackingError(
                    f"experiment {experiment!r} is deleted in {redact_uri(uri)}; "
                    "restore it or give the campaign another name"
                )
            else:
                self.experiment_id = found.experiment_id
        except TrackingError:
            raise
        except (MlflowException, OSError, ValueError) as error:
            raise TrackingError(unreachable(uri, error)) from error
        except Exception as error:  # SQLAlchemy's and requests' own trees
            raise TrackingError(unreachable(uri, error)) from error

    def task_run(self, campaign: str, task: str, spec_yaml: str, tags: dict[str, str]) -> str:
        """The parent run of a task, found again by its tag on a resume."""
        run_id = self._get_or_create(f"task:{task}", None, task, {"task": task, **tags})
        # the spec may have changed since the run was made
        for name, value in {"campaign": campaign, **tags}.items():
            self.client.set_tag(run_id, name, value)
        self.client.log_text(run_id, spec_yaml, "spec.yaml")
        return run_id

    def model_run(
        self, key: str, parent: str, name: str, params: dict[str, Any], tags: dict[str, str]
    ) -> str:
        """The child run of a trial or dense reference, by key; set to RUNNING.

        One that is there keeps the params it began with, for MLflow refuses to change them: its key
        says that all that decides its result is the same. New fields of a later version are added.
        """
        from mlflow.entities import Param

        run_id = self._get_or_create(key, parent, name, tags)
        self.client.update_run(run_id, status="RUNNING")
        known = self.client.get_run(run_id).data.params
        new = [Param(k, str(value)) for k, value in flat(params).items() if k not in known]
        for start in range(0, len(new), MOST_PARAMS):
            self.client.log_batch(run_id, params=new[start : start + MOST_PARAMS])
        return run_id

    def finished(self, key: str) -> bool:
        """Whether the run with this key ended as FINISHED."""
        found = self._find(key)
        return found is not None and found.info.status == "FINISHED"

    def sweep(self, status: str, reason: str) -> int:
        """End every run that is still RUNNING, for nobody writes it any more; returns how many."""
        runs = self.client.search_runs(
            [self.experiment_id], "attributes.status = 'RUNNING'", max_results=5000
        )
        for run in runs:
            RunWriter(self.uri, run.info.run_id).end(status, reason)
        return len(runs)

    def _find(self, key: str) -> Any:
        runs = self.client.search_runs(
            [self.experiment_id], f"tags.`lowrank.key` = '{key}'", max_results=1
        )
        return runs[0] if runs else None

    def _get_or_create(self, key: str, parent: str | None, name: str, tags: dict[str, str]) -> str:
        found = self._find(key)
        if found is not None:
            return found.info.run_id
        tags = {**tags, "lowrank.key": key, "mlflow.source.name": "lowrank run"}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=name)
        return run.info.run_id


class RunWriter:
    """Writes one run; cheap to make in any process."""

    def __init__(self, uri: str, run_id: str) -> None:
        from mlflow import MlflowClient

        self.uri, self.run_id = uri, run_id
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def points(self, points: list[CurvePoint], metric: str) -> None:
        """Curve points as metrics over steps; one request for all of them."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        keys = CURVE_KEYS | {"validation": f"quality/validation_{metric}"}
        metrics = [
            Metric(key, float(value), now, point.step)
            for point in points
            for field, key in keys.items()
            if (value := getattr(point, field)) is not None
        ]
        metrics += [
            Metric(f"extras/{name}", float(value), now, point.step)
            for point in points
            for name, value in point.extras.items()
        ]
        # the server's limit is 1000 metrics per request
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def record(self, record: ModelRecord) -> None:
        """Final figures of a model, from its exported files."""
        values: dict[str, float] = {"time/train_total_s": record.train_seconds}
        values |= {f"quality/validation_{k}_final": v for k, v in record.validation.items()}
        values |= {f"quality/test_{k}": v for k, v in record.test.items()}
        values |= {f"size/{k}": v for k, v in asdict(record.size).items()}
        if record.densities is not None:
            values |= {f"density/{k}": v for k, v in asdict(record.densities).items()}
        values |= {f"projection/{k}": v for k, v in record.projection.items()}
        self.metrics(values)
        self.record_file(record)

    def record_file(self, record: ModelRecord) -> None:
        """The record itself, in place of an earlier one: `RunReader` reads it back equal."""
        self.client.log_text(self.run_id, record.to_json(), RECORD)

    def setting(self, values: dict[str, Any]) -> None:
        """Of a task's run: plain values, in place of earlier ones."""
        self.client.log_text(self.run_id, json.dumps(values, indent=1), SETTING)

    def speed(self, rows: list[Speed], name: str = "speed") -> None:
        """Timings, each with its spread; the fingerprint as tags."""
        for row in rows:
            shape = f"{name}/b{row.batch}x{row.length}"
            self.metrics(
                {
                    f"{shape}/dense_ms": row.dense_ms,
                    f"{shape}/compressed_ms": row.compressed_ms,
                    f"{shape}/dense_iqr_ms": row.dense_spread_ms,
                    f"{shape}/compressed_iqr_ms": row.compressed_spread_ms,
                    f"{shape}/speedup": row.speedup,
                    f"{shape}/speedup_q1": row.speedup_low,
                    f"{shape}/speedup_q3": row.speedup_high,
                    f"{shape}/dense_tokens_per_s": row.throughput_dense,
                    f"{shape}/compressed_tokens_per_s": row.throughput_compressed,
                }
            )
        if rows:
            for key, value in rows[0].fingerprint.items():
                self.client.set_tag(self.run_id, f"{name}.{key}", str(value))

    def int8(self, found: Int8) -> None:
        """The model in 8-bit integers."""
        self.metrics({f"int8/test_{k}": v for k, v in found.test.items()})
        self.metrics({"int8/num_bytes": found.num_bytes})
        self.speed(found.speed, "int8_speed")

    def metrics(self, values: dict[str, float]) -> None:
        """Latest values; what is not finite becomes a tag, since servers differ on NaN."""
        for key, value in values.items():
            if math.isfinite(value):
                self.client.log_metric(self.run_id, key, float(value))
            else:
                self.client.set_tag(self.run_id, key, str(value))

    def tags(self, values: dict[str, str]) -> None:
        for key, value in values.items():
            self.client.set_tag(self.run_id, key, value)

    def artifact(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path))

    def model(self, folder: Path, task_kind: str, params: dict[str, Any]) -> str:
        """Log an exported model in our flavour and MLflow's generic one, without pickle.

        Returns:
            `models:/m-...`.
        """
        import mlflow

        from orchestrator import flavor, serving

        mlflow.set_tracking_uri(self.uri)
        status = self.client.get_run(self.run_id).info.status
        with mlflow.start_run(run_id=self.run_id):
            info = mlflow.models.Model.log(
                artifact_path=None,
                name="model",
                flavor=flavor,
                folder=folder,
                signature=serving.signature(task_kind),
                input_example=serving.input_example(task_kind),
                params={k: str(v)[:250] for k, v in flat(params).items()},
            )
        # leaving the context ends the run; the caller decides when it is over
        self.client.update_run(self.run_id, status=status)
        return str(info.model_uri)

    def end(self, status: str, reason: str | None = None) -> None:
        """FINISHED, FAILED or KILLED; the last thing that is written."""
        if reason:
            self.client.set_tag(self.run_id, "failure", reason[:5000])
        self.client.set_terminated(self.run_id, status)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Params as a run has them: inner mappings as `outer.inner`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def unreachable(uri: str, error: Exception) -> str:
    """The first line of what the client said, without passwords."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"tracking.uri: {redact_uri(uri)} cannot be reached: {redact_uri(first)[:300]}"
