"""Writes one run of MLflow, from any process."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.imports import imports_restored
from orchestrator.records import RECORD, Int8, ModelRecord, Speed
from orchestrator.tracking.journal import Stamped
from orchestrator.tracking.patience import Patience, PatientClient

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
"""CurvePoint field -> MLflow metric. `validation` becomes VALIDATION and the metric's name, and one
of `extras` becomes `extras/<name>`."""
VALIDATION, FINAL = "quality/validation_", "_final"
"""Around a metric's name: the curve's, and with the latter the finished model's."""
TRAIN_SECONDS = "time/train_total_s"
"""Of a finished model."""
WEIGHTS_SHA256 = "weights_sha256"
"""Param of a logged model."""
WEIGHTS_TAG = "weights"
"""On the run, and on the logged model, of a model whose weights are not kept."""
STOPPED_TAG, STOPPED_RUNG, STOPPED_STEP = "stopped", "stopped.rung", "stopped.step"
"""On the run of a trial that was stopped early: why, at which rung, and after which step."""
SHORT_WAIT_S = 30.0
"""How long a worker or a trial waits for a store that is away: a lock and a server's restart pass,
and a processor is not kept idle for longer. Whoever can wait longer, the driver, does so."""
DATABASE_TIMEOUT_S = 20
"""As long as a server is given to answer (`mlflow_client`)."""
SETTING = "setting.json"
"""On the task's run: what its models have in common, for who reads the records alone."""


def mlflow_client(uri: str) -> Any:
    """An MLflow client that says within a minute that nobody answers."""
    from mlflow import MlflowClient

    # MLflow's own default is to retry for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def knock(uri: str) -> None:
    """Ask a database once; MLflow itself asks one that does not answer for a hundred seconds.

    Args:
        uri: MLflow tracking URI; of servers and of SQLite nothing is asked.

    Raises:
        Exception: SQLAlchemy's, or that its driver is not installed.
    """
    if not uri.startswith(("postgresql:", "postgresql+psycopg:")):
        return
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    arguments = {"connect_timeout": DATABASE_TIMEOUT_S}
    engine = sqlalchemy.create_engine(uri, poolclass=NullPool, connect_args=arguments)
    with engine.connect():
        pass


class RunWriter:
    """Writes one run; cheap to make in any process.

    Everything that it writes may be written twice: a request whose answer was lost is made again.

    Args:
        uri: MLflow tracking URI.
        run_id: The run.
        patience: How long a store that is away is asked again.

    Raises:
        TrackingAway: By every method, when it was away for longer.
    """

    def __init__(self, uri: str, run_id: str, patience: Patience | None = None) -> None:
        self.uri, self.run_id = uri, run_id
        self.patience = patience or Patience(uri, SHORT_WAIT_S)
        self.client = PatientClient(mlflow_client(uri), self.patience)

    def points(self, points: list[Stamped], metric: str) -> None:
        """Curve points as metrics over steps; one request for all of them."""
        from mlflow.entities import Metric

        keys = CURVE_KEYS | {"validation": f"{VALIDATION}{metric}"}
        metrics = [
            Metric(key, float(value), each.at_ms, each.point.step)
            for each in points
            for field, key in keys.items()
            if (value := getattr(each.point, field)) is not None
        ]
        metrics += [
            Metric(f"extras/{name}", float(value), each.at_ms, each.point.step)
            for each in points
            for name, value in each.point.extras.items()
        ]
        # the server's limit is 1000 metrics per request
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def record(self, record: ModelRecord) -> None:
        """Final figures of a model, from its exported files."""
        values: dict[str, float] = {TRAIN_SECONDS: record.train_seconds}
        values |= {f"{VALIDATION}{k}{FINAL}": v for k, v in record.validation.items()}
        values |= {f"quality/test_{k}": v for k, v in record.test.items()}
        values |= {f"size/{k}": v for k, v in asdict(record.size).items()}
        if record.densities is not None:
            values |= {f"density/{k}": v for k, v in asdict(record.densities).items()}
        values |= {f"projection/{k}": v for k, v in record.projection.items()}
        if record.rate_factor != 1:
            self.tags({"rate_factor": f"{record.rate_factor:g}"})
        if record.worlds:
            parts = [f"{world} from step {step}" for step, world in record.worlds]
            self.tags({"workers.used": ", ".join(parts)})
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
        values: dict[str, float] = {}
        for row in rows:
            shape = f"{name}/b{row.batch}x{row.length}"
            values |= {
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
        if rows:
            self.metrics(values, {f"{name}.{k}": str(v) for k, v in rows[0].fingerprint.items()})

    def int8(self, found: Int8) -> None:
        """The model in 8-bit integers."""
        self.metrics({f"int8/test_{k}": v for k, v in found.test.items()})
        self.metrics({"int8/num_bytes": found.num_bytes})
        self.speed(found.speed, "int8_speed")

    def metrics(self, values: dict[str, float], tags: dict[str, str] | None = None) -> None:
        """Latest values, and tags with them, in one request; what is not finite becomes a tag,
        since servers differ on NaN."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        others = {key: str(value) for key, value in values.items() if key not in finite}
        self.client.log_batch(
            self.run_id,
            metrics=[Metric(key, value, now, 0) for key, value in finite.items()],
            tags=[RunTag(key, value) for key, value in (others | (tags or {})).items()],
        )

    def tags(self, values: dict[str, str]) -> None:
        self.metrics({}, values)

    def artifact(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path))

    def model(self, record: ModelRecord, task_kind: str) -> str:
        """Log an exported model in our flavour and MLflow's generic one, without pickle.

        The one that an earlier attempt logged stays, if its weights are the same.

        Returns:
            `models:/m-...`.
        """
        return self.patience.ask(self._model, record, task_kind)

    def _model(self, record: ModelRecord, task_kind: str) -> str:
        import mlflow

        from orchestrator import flavor, serving

        known = self._logged_model(record.export_sha256)
        if known is not None:
            return known
        mlflow.set_tracking_uri(self.uri)
        status = self.client.get_run(self.run_id).info.status
        params = flat({"size": asdict(record.size), WEIGHTS_SHA256: record.export_sha256})
        with imports_restored(), mlflow.start_run(run_id=self.run_id):
            info = mlflow.models.Model.log(
                artifact_path=None,
                name="model",
                flavor=flavor,
                folder=Path(record.export),
                signature=serving.signature(task_kind),
                input_example=serving.input_example(task_kind),
                params={k: str(v)[:250] for k, v in params.items()},
            )
        # leaving the context ends the run; the caller decides when it is over
        self.client.update_run(self.run_id, status=status)
        return str(info.model_uri)

    def _logged_model(self, weights_sha256: str) -> str | None:
        """Of this run, whole, and with these weights."""
        outputs = self.client.get_run(self.run_id).outputs
        for output in outputs.model_outputs if outputs else []:
            model = self.client.get_logged_model(output.model_id)
            is_ready = str(model.status) == "READY"
            is_kept = WEIGHTS_TAG not in model.tags
            if is_ready and is_kept and model.params.get(WEIGHTS_SHA256) == weights_sha256:
                return f"models:/{output.model_id}"
        return None

    def stopped(self, rung: float, reason: str, step: int) -> None:
        """The training was stopped early: the run ends as KILLED, for it has no model, and its tags
        tell it from one that was interrupted."""
        self.tags({STOPPED_TAG: reason, STOPPED_RUNG: f"{rung:g}", STOPPED_STEP: str(step)})
        self.client.set_terminated(self.run_id, "KILLED")

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
