"""What the stages of a campaign share: where it runs, and what is known of each task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.campaign_records import FailedTrial, StoppedTrial
from orchestrator.data.prepare import PreparedData
from orchestrator.earlier import EarlierTrial
from orchestrator.housekeeping import Housekeeping
from orchestrator.layout import Layout
from orchestrator.method_search import TrialPlan
from orchestrator.progress import Progress
from orchestrator.records import ModelRecord
from orchestrator.spec import CampaignSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.stopping.rungs import Rungs
from orchestrator.tracking import Tracking
from orchestrator.train_run import train_on_workers
from orchestrator.trial import Train


@dataclass(kw_only=True)
class TaskState:
    """What the campaign knows of one task while it runs."""

    task: AnyTask
    data: PreparedData
    run_id: str
    """The task's parent run."""
    earlier: list[EarlierTrial] = field(default_factory=list)
    """What it has of other campaigns."""
    plans: list[TrialPlan] = field(default_factory=list)
    """As far as they are known: what is best among them decides what follows."""
    dense: ModelRecord | None = None
    trials: list[ModelRecord] = field(default_factory=list)
    failed: list[FailedTrial] = field(default_factory=list)
    stopped: list[StoppedTrial] = field(default_factory=list)
    """Early; they are not among the failed."""
    rungs: Rungs | None = None
    """Where draws are judged; None if nobody is stopped."""


@dataclass(kw_only=True)
class Site:
    """Where a campaign runs and what it writes to."""

    spec: CampaignSpec
    layout: Layout
    tracking: Tracking
    progress: Progress
    available: dict[str, Any]
    """The cluster's resources."""
    train: Train = train_on_workers
    house: Housekeeping = field(init=False)

    def __post_init__(self) -> None:
        self.house = Housekeeping(self.spec, self.layout, self.tracking, self.progress.line)
