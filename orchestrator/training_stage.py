"""The stage that trains: one dense reference and the trials of a task, each a Tune trial."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from orchestrator import cluster
from orchestrator.campaign_state import Site, TaskState
from orchestrator.errors import TrialError
from orchestrator.progress import tune_callback
from orchestrator.records import FailedTrial, ModelRecord
from orchestrator.search import dense_key
from orchestrator.tasks import make_task
from orchestrator.tracking import RunWriter
from orchestrator.trial import Launch, tune_trial


class TrainingStage:
    """Launches what has no finished model yet, and collects records and failures."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def run(self, state: TaskState) -> None:
        """Train what is missing of a task: its dense reference, then its trials."""
        task = state.task
        key = dense_key(self.site.spec, task, state.data.content_hash)
        dense_name = f"{task.name} dense"
        state.dense = self._existing(key)
        if state.dense is None:
            launch = self._launch(
                state, key, "dense", self.site.spec.method_of(task).model_dump(), {}
            )
            self._run_trials(state, {dense_name: launch}, 1)
            state.dense = self._existing(key)
        else:
            self.site.progress.done(dense_name, "already finished", reused=True)
        if state.dense is None:
            reason = state.failed[-1].reason if state.failed else "no record was left"
            raise TrialError(f"the dense reference of task {task.name} failed: {reason}", key)
        launches: dict[str, Launch] = {}
        for plan in state.plans:
            name = f"{task.name} {plan.name}"
            if self._existing(plan.key) is not None:
                self.site.progress.done(name, "already finished", reused=True)
            else:
                launches[name] = self._launch(
                    state, plan.key, plan.name, plan.method.model_dump(), plan.searched
                )
        concurrent = cluster.concurrent_trials(
            self.site.spec.resources_of(task), self.site.available
        )
        if launches:
            self._run_trials(state, launches, concurrent)
        records = [self._existing(plan.key) for plan in state.plans]
        state.trials = [record for record in records if record is not None]

    def _existing(self, key: str) -> ModelRecord | None:
        """A finished model with this key: both its record and its FINISHED run."""
        path = self.site.layout.record(key)
        if path.exists() and self.site.tracking.finished(key):
            return ModelRecord.load(path)
        return None

    def _launch(
        self, state: TaskState, key: str, name: str, method: dict[str, Any], params: dict[str, Any]
    ) -> Launch:
        task, dense = state.task, state.dense
        run_id = self.site.tracking.model_run(
            key,
            state.run_id,
            f"{task.name} {name}",
            {
                "task": task.name,
                "seed": self.site.spec.seed,
                "workers": self.site.spec.resources_of(task).workers,
                "data_hash": state.data.content_hash,
                "dense": task.dense.model_dump(),
            }
            # a dense reference outlives a change of method, and MLflow refuses changed parameters
            | ({"method": method | params} if dense else {}),
            {
                "kind": "trial" if dense else "dense",
                "spec_hash": self.site.spec.digest(),
                **_versions(),
            },
        )
        job = {
            "key": key,
            "task": task.model_dump(mode="json"),
            "method": method,
            "data": str(state.data.folder),
            "seed": self.site.spec.seed,
            "dense": dense.export if dense else None,
        }
        return Launch(
            job=job,
            storage=self.site.spec.storage,
            campaign=self.site.spec.name,
            resources=self.site.spec.resources_of(task).model_dump(),
            tracking_uri=self.site.tracking.uri,
            run_id=run_id,
            metric=make_task(task, state.data, 0).metric.name,
            dense_record=str(self.site.layout.record(dense.key)) if dense else None,
        )

    def _run_trials(self, state: TaskState, launches: dict[str, Launch], concurrent: int) -> None:
        """Tune runs one trial per launch; failures are kept with their reason."""
        from ray import tune

        names = {launch.job["key"]: name for name, launch in launches.items()}
        tuner = tune.Tuner(
            tune.with_resources(tune_trial, {cluster.DRIVER: 1}),
            param_space={"launch": tune.grid_search([asdict(v) for v in launches.values()])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent,
                trial_dirname_creator=lambda trial: trial.config["launch"]["job"]["key"],
            ),
            run_config=tune.RunConfig(
                name=f"{state.task.name}-{int(time.time())}",
                storage_path=str(self.site.layout.tune),
                failure_config=tune.FailureConfig(max_failures=1),
                callbacks=[tune_callback(self.site.progress, names)],
                verbose=0,
            ),
        )
        for result in tuner.fit():
            launch = (result.config or {})["launch"]
            failure = (result.metrics or {}).get("failure")
            if result.error is not None:
                failure = f"{type(result.error).__name__}: {str(result.error).splitlines()[-1]}"
                RunWriter(self.site.tracking.uri, launch["run_id"]).end("FAILED", failure)
            if failure:
                state.failed.append(
                    FailedTrial(
                        key=launch["job"]["key"],
                        task=state.task.name,
                        config=launch["job"]["method"],
                        reason=failure,
                    )
                )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("lowrank-orchestrator", "torch", "transformers", "ray", "mlflow")
    return {f"version.{name}": version(name) for name in names}
