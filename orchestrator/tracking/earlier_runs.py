"""Reading the trials of other campaigns back, for a search that begins with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.earlier import EarlierTrial, task_digest
from orchestrator.errors import CampaignError, TrackingError, redact_uri
from orchestrator.tracking.patience import unreachable
from orchestrator.tracking.reading import LoggedRun, RunReader
from orchestrator.tracking.store import experiments
from orchestrator.wording import listed


class WarmStartError(CampaignError):
    """An earlier campaign is not there."""

    exit_code = 2


@dataclass(frozen=True)
class Found:
    """What a task can take of earlier campaigns."""

    trials: list[EarlierTrial] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Other trials, by the reason."""


class EarlierRuns:
    """The trials of some campaigns.

    Args:
        uri: MLflow tracking URI.
        campaigns: Names of their experiments.
        own: Of the campaign that asks, which has begun.

    Raises:
        WarmStartError: The store has no such campaign.
        TrackingError: It cannot be reached.
    """

    def __init__(self, uri: str, campaigns: Sequence[str], own: str) -> None:
        try:
            there = [name for name in experiments(uri) if name != own]
        except Exception as error:  # MLflow's, SQLAlchemy's and requests' own trees
            raise TrackingError(unreachable(uri, error)) from error
        for name in campaigns:
            if name not in there:
                known = f"it has {listed(there)}" if there else "it has none"
                raise WarmStartError(
                    f"search.warm_start: {name!r} must be a campaign in {redact_uri(uri)}, which "
                    f"is where this one is recorded: {known}. What is in another store or was "
                    "deleted cannot be read"
                )
        self._readers = {name: RunReader(uri, name) for name in campaigns}
        self._runs = {name: reader.runs() for name, reader in self._readers.items()}

    def of(self, data_hash: str, metric: str) -> Found:
        """The finished trials of tasks with these data and this metric, in the order of the
        campaigns and then of their beginning."""
        found = Found()
        for campaign, runs in self._runs.items():
            digests: dict[str, str] = {}
            for run in runs:
                if run.tags.get("kind") != "trial":
                    continue
                if reason := _misfit(run, data_hash):
                    found.left_out[reason] += 1
                    continue
                record = self._readers[campaign].record(run)
                if record is None or not math.isfinite(record.quality):
                    found.left_out["without a record that can be read"] += 1
                elif record.metric.name != metric:
                    found.left_out[f"by {record.metric.name}, not {metric}"] += 1
                else:
                    task = run.params.get("task", "")
                    if task not in digests:
                        digests[task] = self._digest(campaign, task)
                    excess, loss = record.preference
                    found.trials.append(
                        EarlierTrial(
                            campaign=campaign,
                            run_id=run.run_id,
                            method_name=record.method_name,
                            config=record.config,
                            task_digest=digests[task],
                            loss=loss,
                            excess=excess,
                        )
                    )
        return found

    def _digest(self, campaign: str, task: str) -> str:
        """Of a task as its campaign asked for it last; empty if nobody knows."""
        parents: Mapping[str, LoggedRun] = {run.key: run for run in self._runs[campaign]}
        parent = parents.get(f"task:{task}")
        spec = self._readers[campaign].spec(parent) if parent else None
        names = [] if spec is None else [each.name for each in spec.tasks]
        return task_digest(spec.task(task)) if spec is not None and task in names else ""


def _misfit(run: LoggedRun, data_hash: str) -> str:
    """Why a trial's record need not be read; empty if it must be."""
    if run.status != "FINISHED":
        return "that did not finish"
    return "" if run.params.get("data_hash") == data_hash else "of other data"
