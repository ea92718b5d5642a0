"""Reading MLflow runs back: what a results page is written from. Makes and changes nothing."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.draws import DRAWS, Draws
from orchestrator.draws import parse as parse_draws
from orchestrator.earlier import EARLIER, Readings
from orchestrator.errors import SpecError, TrackingError, redact_uri
from orchestrator.records import RECORD, ModelRecord
from orchestrator.spec import CampaignSpec
from orchestrator.spec_yaml import parse
from orchestrator.tracking.patience import unreachable
from orchestrator.tracking.store import PAGE, SPEC
from orchestrator.tracking.writer import SETTING, knock, mlflow_client

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedRun:
    """One run of an experiment, as its store has it."""

    run_id: str
    key: str
    """Of a model; `task:NAME` for a task's own run."""
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    started: float
    """Seconds since the epoch."""
    ended: float | None
    params: dict[str, str]
    tags: dict[str, str]
    name: str = ""
    """For people."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last values."""


class RunReader:
    """Reads the runs of a campaign's experiment.

    Args:
        uri: MLflow tracking URI.
        experiment: Name.

    Raises:
        TrackingError: The store cannot be reached, or has no such experiment.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        # to open a database that is not there would make it
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            raise TrackingError(f"nothing is recorded in {redact_uri(uri)} yet")
        try:
            knock(uri)
            self.client = mlflow_client(uri)
            found = self.client.get_experiment_by_name(experiment)
        except Exception as error:  # MLflow's, SQLAlchemy's and requests' own trees
            raise TrackingError(unreachable(uri, error)) from error
        if found is None or found.lifecycle_stage != "active":
            raise TrackingError(f"{redact_uri(uri)} has no experiment {experiment!r}")
        self._uri = uri
        self._experiment_id = found.experiment_id

    def runs(self) -> list[LoggedRun]:
        """Every run that has a key, in the order in which they began.

        Raises:
            TrackingError: The store does not answer.
        """
        found, token = [], None
        while True:
            try:
                page = self.client.search_runs(
                    [self._experiment_id],
                    max_results=PAGE,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            except Exception as error:  # as above
                raise TrackingError(unreachable(self._uri, error)) from error
            found += [_logged(run) for run in page if "lowrank.key" in run.data.tags]
            token = page.token
            if not token:
                return found

    def record(self, run: LoggedRun) -> ModelRecord | None:
        """What `RunWriter.record` wrote; None if the run has no record, or not in this form."""
        text = self._text(run.run_id, RECORD)
        try:
            return ModelRecord.from_json(text) if text else None
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("run %s: its %s cannot be read: %s", run.run_id, RECORD, error)
            return None

    def setting(self, run: LoggedRun) -> dict[str, Any]:
        """What `RunWriter.setting` wrote; empty if nothing was."""
        return json.loads(self._text(run.run_id, SETTING) or "{}")

    def draws(self, run: LoggedRun) -> Draws:
        """What a sampler suggested, as a task's own run has it; nothing if it has none."""
        try:
            return Draws(kept=parse_draws(json.loads(self._text(run.run_id, DRAWS) or "{}")))
        except ValueError as error:
            logger.warning("run %s: its %s cannot be read: %s", run.run_id, DRAWS, error)
            return Draws()

    def earlier(self, run: LoggedRun) -> Readings:
        """What a campaign took from others, as a task's own run has it; nothing if it has none."""
        try:
            return Readings(text=self._text(run.run_id, EARLIER))
        except ValueError as error:
            logger.warning("run %s: its %s cannot be read: %s", run.run_id, EARLIER, error)
            return Readings()

    def spec(self, run: LoggedRun) -> CampaignSpec | None:
        """What a task's own run has of its campaign's spec; None if this version cannot read it."""
        try:
            return CampaignSpec.model_validate(parse(self._text(run.run_id, SPEC) or "", SPEC).data)
        except (ValueError, SpecError):
            return None

    def last_step(self, run: LoggedRun, metric: str) -> int | None:
        """The step of a metric's last value; None if the run has none."""
        if metric not in run.metrics:
            return None
        return max(each.step for each in self.client.get_metric_history(run.run_id, metric))

    def _text(self, run_id: str, name: str) -> str | None:
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory(prefix="lowrank-records-") as folder:
            try:
                path = Path(self.client.download_artifacts(run_id, name, folder))
                return path.read_text(encoding="utf-8")
            except (MlflowException, OSError):
                return None


def _logged(run: Any) -> LoggedRun:
    ended = run.info.end_time
    return LoggedRun(
        run_id=run.info.run_id,
        key=run.data.tags["lowrank.key"],
        status=run.info.status,
        started=run.info.start_time / 1000,
        ended=None if ended is None else ended / 1000,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        name=run.info.run_name or "",
        metrics=dict(run.data.metrics),
    )
