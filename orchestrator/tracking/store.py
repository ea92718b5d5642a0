"""A campaign's experiment in a tracking store: which runs there are, and which are finished."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import TrackingError, redact_uri
from orchestrator.tracking.patience import Patience, PatientClient, unreachable
from orchestrator.tracking.writer import (
    SHORT_WAIT_S,
    STOPPED_RUNG,
    STOPPED_STEP,
    STOPPED_TAG,
    WEIGHTS_TAG,
    RunWriter,
    flat,
    knock,
    mlflow_client,
)

logger = logging.getLogger(__name__)

KEY = "lowrank.key"
"""Tag by which a run is found again."""
SPEC = "spec.yaml"
"""On a task's run."""
MOST_PARAMS = 100
"""In one request; the server's limit."""
PAGE = 100
"""Runs in one answer. Each comes with all its params, tags and metrics: a server on two cores that
trained beside it took seconds for so many, and for 1,000 longer than a request may."""
ENDING_WAIT_S = 10.0
"""How long whoever asked a campaign to end waits for a store that is away: SQLite gives up a lock
after 5 s by itself, and a process that was just killed may have left one."""


def default_tracking_uri(storage: str) -> str:
    """SQLite under the storage folder."""
    return f"sqlite:///{Path(storage).absolute() / 'mlflow.db'}"


def experiment_id(uri: str, experiment: str) -> str | None:
    """The id that MLflow's pages use for an experiment, or None."""
    found = mlflow_client(uri).get_experiment_by_name(experiment)
    return None if found is None else str(found.experiment_id)


def experiments(uri: str) -> list[str]:
    """Names of the experiments of a store, but for the one that MLflow makes by itself."""
    found, token = list[str](), None
    client = mlflow_client(uri)
    while True:
        page = client.search_experiments(max_results=PAGE, page_token=token)
        found += [each.name for each in page if each.name != "Default"]
        token = page.token
        if not token:
            return sorted(found)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a run from having listed or made it."""

    run_id: str
    is_finished: bool
    """A trial's process ends its run, so False means no more than not yet seen."""


class Tracking:
    """A tracking store, and one campaign's experiment in it.

    Args:
        uri: MLflow tracking URI.
        experiment: Name; created if needed.
        artifacts: Folder for artifacts when the store is a local database; a server has its own.
        wait_s: How long a store that was there and is away is asked again.
        say: Hears of it.

    Raises:
        TrackingError: The store cannot be reached or created; at once, for a person is there who
            may have mistyped its address.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifacts: Path,
        wait_s: float = SHORT_WAIT_S,
        say: Callable[[str], None] = logger.warning,
    ) -> None:
        self.uri = uri
        self.patience = Patience(uri, wait_s, say)
        # a driver has its experiment for itself, so one listing is enough; to search for each key
        # would take a server longer the more runs it has
        self._known: dict[str, _Known] | None = None
        local = uri.startswith("sqlite:")
        try:
            knock(uri)
            client = mlflow_client(uri)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                location = (artifacts / experiment).absolute().as_uri() if local else None
                self.experiment_id = client.create_experiment(experiment, location)
            elif found.lifecycle_stage != "active":
                raise TrackingError(
                    f"experiment {experiment!r} is deleted in {redact_uri(uri)}; "
                    "restore it or give the campaign another name"
                )
            else:
                self.experiment_id = found.experiment_id
        except TrackingError:
            raise
        except Exception as error:  # MLflow's, SQLAlchemy's and requests' own trees
            raise TrackingError(unreachable(uri, error)) from error
        self.client = PatientClient(client, self.patience)

    def writer(self, run_id: str) -> RunWriter:
        """Of a run, as patient as this."""
        return RunWriter(self.uri, run_id, self.patience)

    def hurry(self) -> None:
        """Wait for little more than a lock: the campaign is being ended."""
        self.patience = Patience(self.uri, ENDING_WAIT_S, self.patience.say)
        self.client = PatientClient(mlflow_client(self.uri), self.patience)

    def task_run(self, campaign: str, task: str, spec_yaml: str, tags: dict[str, str]) -> str:
        """The parent run of a task, found again by its tag on a resume."""
        run_id, _ = self._run(f"task:{task}", None, task, {"task": task, **tags})
        # the spec may have changed since the run was made
        for name, value in {"campaign": campaign, **tags}.items():
            self.client.set_tag(run_id, name, value)
        self.client.log_text(run_id, spec_yaml, SPEC)
        return run_id

    def model_run(
        self, key: str, parent: str, name: str, params: dict[str, Any], tags: dict[str, str]
    ) -> str:
        """The child run of a trial or dense reference, by key; set to RUNNING.

        One that is there keeps the params it began with, for MLflow refuses to change them: its key
        says that all that decides its result is the same. New fields of a later version are added.
        """
        from mlflow.entities import Param

        run_id, is_new = self._run(key, parent, name, tags)
        there: dict[str, str] = {}
        if not is_new:
            self._all()[key] = _Known(run_id, False)
            self.client.update_run(run_id, status="RUNNING")
            data = self.client.get_run(run_id).data
            there = data.params
            # one that was stopped early or lost its weights, and is trained now
            for tag in {STOPPED_TAG, STOPPED_RUNG, STOPPED_STEP, WEIGHTS_TAG} & set(data.tags):
                self.client.delete_tag(run_id, tag)
        new = [Param(k, str(value)) for k, value in flat(params).items() if k not in there]
        for start in range(0, len(new), MOST_PARAMS):
            self.client.log_batch(run_id, params=new[start : start + MOST_PARAMS])
        return run_id

    def finished(self, key: str) -> bool:
        """Whether the run with this key ended as FINISHED."""
        run = self._all().get(key)
        if run is None or run.is_finished:
            return run is not None
        return self.client.get_run(run.run_id).info.status == "FINISHED"

    def sweep(self, status: str, reason: str) -> int:
        """End every run that is still RUNNING, for nobody writes it any more; returns how many."""
        runs = list(self._search("attributes.status = 'RUNNING'"))
        for run in runs:
            self.writer(run.info.run_id).end(status, reason)
        return len(runs)

    def _search(self, condition: str) -> Iterator[Any]:
        """Every run that meets it, the latest first."""
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], condition, max_results=PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _all(self) -> dict[str, _Known]:
        """The runs by their keys."""
        if self._known is None:
            found: dict[str, _Known] = {}
            for run in self._search(""):
                if key := run.data.tags.get(KEY):
                    found.setdefault(key, _Known(run.info.run_id, run.info.status == "FINISHED"))
            self._known = found
        return self._known

    def _run(
        self, key: str, parent: str | None, name: str, tags: dict[str, str]
    ) -> tuple[str, bool]:
        """The run's id, and whether it was made now and has no more than these tags."""
        # as a whole: a run whose making was not answered is found by the next look
        return self.patience.ask(self._get_or_create, key, parent, name, tags)

    def _get_or_create(
        self, key: str, parent: str | None, name: str, tags: dict[str, str]
    ) -> tuple[str, bool]:
        runs = self._all()
        if key in runs:
            return runs[key].run_id, False
        tags = {**tags, KEY: key, "mlflow.source.name": "lowrank run"}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        self._known = None  # until there is an answer
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=name)
        runs[key] = _Known(run.info.run_id, False)
        self._known = runs
        return run.info.run_id, True
