"""Ray Tune runs a campaign's trainings: one Tune run for all tasks, fed as they get on.

Several Tune runs at once on one cluster are nothing that Ray supports (ray#21469), and one after
the other they leave machines idle at the end of each.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from orchestrator.campaign_state import Site, TaskState
from orchestrator.errors import CampaignError
from orchestrator.progress import tune_callback
from orchestrator.room import DRIVER
from orchestrator.stopping.signals import Signals
from orchestrator.trainings import Trainings
from orchestrator.trial import tune_trial

MAX_LOST_TRIALS = 8
"""Restarts of a trial's own process, which does little and lives on the head node: each costs
seconds and the steps since the last state. One that dies nine times is not unlucky."""

SLOT = 1e-4
"""Of the trial drivers' resource, the least that Ray counts: what a trial of slot k leaves. Tune
gives a process to any trial that takes the same, also to one whose own just starts, which is thrown
away then: with short trials again and again. So only a slot's next trial takes the same."""


def train_all(site: Site, states: Iterable[TaskState]) -> None:
    """Train what is missing of all tasks.

    Args:
        site: Where; Ray runs.
        states: Of the tasks; they get their dense references, trials and failures.

    Raises:
        CampaignError: A task could not go on, such as without its dense reference; what could be
            trained of the others is there then.
    """
    signals = Signals()
    trainings = Trainings(site, states, signals)
    try:
        if trainings.begin():
            _tuner(site, trainings, signals).fit()
    finally:
        signals.forget()
    trainings.close()
    if not trainings.is_over:
        raise CampaignError("Ray Tune ended before all trials had; the same command goes on")


def _tuner(site: Site, trainings: Trainings, signals: Signals) -> Any:
    from ray import tune
    from ray.tune.search import Searcher

    from orchestrator.stopping.scheduler import FrontScheduler

    class Queue(Searcher):
        """Tune's search: what it suggests is what may start now."""

        def suggest(self, trial_id: str) -> Any:
            launch = trainings.next()
            if launch is not None:
                return {"launch": launch, "slot": trainings.slot(launch.key)}
            return Searcher.FINISHED if trainings.is_over else None

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """The callback tells, which knows what a process died of."""

        def save_to_dir(self, checkpoint_dir: str, session_str: str = "") -> None:
            """Who goes on begins a search of its own, from what is finished."""

    def of_slot(config: dict[str, Any]) -> Any:
        return tune.PlacementGroupFactory([{DRIVER: 1 - config["slot"] * SLOT}])

    stops = site.spec.search.stopping is not None
    return tune.Tuner(
        tune.with_resources(partial(tune_trial, train=site.train), of_slot),
        tune_config=tune.TuneConfig(
            search_alg=Queue(),
            num_samples=-1,
            max_concurrent_trials=trainings.most,
            # a process takes longer to start and import than a trial's bookkeeping takes
            reuse_actors=True,
            scheduler=FrontScheduler(trainings, signals) if stops else None,
            trial_dirname_creator=lambda trial: trial.config["launch"].key,
        ),
        run_config=tune.RunConfig(
            name=f"trials-{int(time.time())}",
            storage_path=str(site.layout.tune),
            failure_config=tune.FailureConfig(max_failures=MAX_LOST_TRIALS),
            callbacks=[
                tune_callback(site.progress, trainings.names, trainings.ended, trainings.over)
            ],
            verbose=0,
        ),
    )
