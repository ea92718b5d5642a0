"""Where and with what a model's training runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.job import Job
from orchestrator.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One training of one model; travels to the trial's process."""

    job: dict[str, Any]
    """Fields of `job.Job`."""
    storage: str
    campaign: str
    resources: dict[str, Any]
    tracking_uri: str
    run_id: str
    metric: str
    """Name of the task's metric, for the keys of the curves."""
    dense_record: str | None = None
    """Place of the dense reference's record.json; None for a dense job."""
    method_name: str = ""
    """Goes into the record; the job itself has no use for it."""
    warm_start: str = ""
    """Likewise: `CAMPAIGN/RUN` of the earlier trial whose values it has."""
    stop_signal: str | None = None
    """Where its training hears that it is to stop early (`stopping.signals`); None if it never
    is."""
    then: list[dict[str, Any]] = field(default_factory=list)
    """Fields of the launches that follow in the same trial: of a trunk its branches."""

    def __str__(self) -> str:
        """Its key: Ray Tune names trials after their values."""
        return self.key

    @property
    def key(self) -> str:
        return str(self.job["key"])

    @property
    def is_trunk(self) -> bool:
        """Whether it leaves no model, but the starts of its ladder's branches."""
        return Job(**self.job).is_trunk

    @property
    def layout(self) -> Layout:
        return Layout.of(self.storage, self.campaign)
