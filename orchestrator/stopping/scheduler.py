"""Ray Tune's part in stopping: every report of a training comes by here.

For processes that run Ray: this imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.stopping.notes import Passed
from orchestrator.stopping.signals import Signals, Stop


class Judge(Protocol):
    """The rungs of a task, or whoever finds those of a training."""

    def arrive(self, key: str, report: Mapping[str, Any]) -> Passed | None:
        """A report of a training; where it is to stop, if it is."""


class FrontScheduler(FIFOScheduler):
    """Stops draws that others are ahead of in quality and size.

    It never answers STOP: Tune would end the trial's process, and the Ray Train run inside would
    keep its machines until a cleaner finds it, if one does (ray#54305). The training is told, ends
    at its next look as one that is through does, and its trial reports that.

    Args:
        rungs: That judge.
        signals: To the trainings.
    """

    def __init__(self, rungs: Judge, signals: Signals) -> None:
        super().__init__()
        self._rungs, self._signals = rungs, signals

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        key = trial.config["launch"].key
        found = self._rungs.arrive(key, result)
        if found is not None:
            self._signals.send(key, Stop(rung=found.rung, reason=found.reason))
        return str(TrialScheduler.CONTINUE)
