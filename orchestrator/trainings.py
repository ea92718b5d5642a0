"""The trainings of all tasks, as Ray Tune asks for them: what starts next, and what is over.

Each task goes through its rounds by itself (`training_stage`): one that has its dense reference
need not wait for those of others. `turns` says whose trial is next. Everything happens in the
driver's main thread, between two events of Tune.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator import machines
from orchestrator.campaign_state import Site, TaskState
from orchestrator.errors import CampaignError
from orchestrator.ladder_stage import models_above
from orchestrator.launch import Launch
from orchestrator.recording import trained
from orchestrator.stopping.notes import Passed
from orchestrator.stopping.signals import Signals
from orchestrator.stopping_stage import is_stopped
from orchestrator.training_stage import Round, TrainingStage, failure_of
from orchestrator.turns import Machine, Turns

logger = logging.getLogger(__name__)


@dataclass
class _Task:
    """One task on its way through its rounds."""

    state: TaskState
    rounds: Generator[Round, None, None]
    launches: dict[str, Launch] = field(default_factory=dict)
    """Of this round, by their keys."""
    left: set[str] = field(default_factory=set)
    """Keys of models that its trials have still to train."""
    read: set[str] = field(default_factory=set)
    """Keys of models that they begin with, or go on from."""
    ends: list[tuple[Launch, dict[str, Any], str | None]] = field(default_factory=list)
    """Trials of this round that are over: launch, last report, what its process died of."""
    is_over: bool = False


class Trainings:
    """Of one campaign.

    Args:
        site: Where it runs.
        states: Of its tasks; dense references, trials and failures are added to them.
        signals: To trainings that are to stop early.
    """

    def __init__(self, site: Site, states: Iterable[TaskState], signals: Signals) -> None:
        self.site, self._signals = site, signals
        stage = TrainingStage(site)
        self._tasks = {each.task.name: _Task(each, stage.train(each)) for each in states}
        resources = {
            name: site.spec.resources_of(task.state.task) for name, task in self._tasks.items()
        }
        self._turns = Turns(resources)
        self._labels = {key for each in resources.values() for key in each.labels}
        self._machines, self._looked = list[Machine](), -machines.LOOK_EVERY_S
        self._task_of: dict[str, _Task] = {}
        self._error: Exception | None = None
        self._slots: dict[str, int] = {}
        self.names: dict[str, str] = {}
        """Key of a model -> what people call it."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps its search as a file, and who goes on begins a search of its own."""
        return {}

    @property
    def most(self) -> int:
        """Trials that run at once."""
        return self._turns.most

    @property
    def is_over(self) -> bool:
        return all(task.is_over for task in self._tasks.values())

    def begin(self) -> bool:
        """Plan the first round of each task; whether there is anything to train."""
        self._go_on()
        return not self.is_over

    def next(self) -> Launch | None:
        """The training that may start now; None if none may, or none is left."""
        self._go_on()
        name = self._turns.next(self._look())
        if name is None:
            return None
        if not self._turns.running and not self._wait_for_machines(name):
            return None
        key = self._turns.start(name, self._look())
        self._slots[key] = min(set(range(len(self._slots) + 1)) - set(self._slots.values()))
        return self._tasks[name].launches[key]

    def slot(self, key: str) -> int:
        """The least number that no other trial on its way has."""
        return self._slots[key]

    def arrive(self, key: str, report: Mapping[str, Any]) -> Passed | None:
        """A report of a training; where it is to stop, if it is."""
        rungs = self._task_of[key].state.rungs
        return None if rungs is None else rungs.arrive(key, report)

    def ended(self, key: str, report: dict[str, Any]) -> None:
        """A model's training is over; its trial may go on with other models."""
        task = self._task_of[key]
        task.left.discard(key)
        rungs = task.state.rungs
        if rungs is not None and (stopped := report.get("stopped")):
            rungs.ended(key, stopped["step"], stopped["recorded"])
        self.site.house.ended(key, report)
        self._settle()

    def over(self, launch: Launch, report: dict[str, Any], death: str | None) -> None:
        """A trial is over.

        Args:
            launch: Of it.
            report: Its last.
            death: What its process died of, if it did.
        """
        if self._slots.pop(launch.key, None) is None:
            return  # an error in Tune's loop makes it tell of a trial twice
        self._turns.over(launch.key)
        self._task_of[launch.key].ends.append((launch, report, death))

    def close(self) -> None:
        """After the last of them.

        Raises:
            Exception: What ended the trainings of a task before their time; others went on.
        """
        if self._error is not None:
            raise self._error

    def _go_on(self) -> None:
        """To the next round of each task whose round is over."""
        for name, task in self._tasks.items():
            while not task.is_over and not self._turns.busy(name):
                # an error within Tune's loop would end the trainings of other tasks, too
                try:
                    self._note_failures(task)
                    launches = next(task.rounds, None)
                    task.launches, task.left, task.read = {}, set(), set()
                    if launches is None:
                        task.is_over = True
                    else:
                        self._submit(task, launches)
                except Exception as error:
                    self._give_up([task], error)

    def _give_up(self, tasks: Iterable[_Task], error: Exception) -> None:
        for task in tasks:
            task.is_over = True
        self._error = self._error or error
        if not self.is_over:
            names = ", ".join(task.state.task.name for task in tasks)
            self.site.progress.line(f"{names}: {error}; the other tasks go on")

    def _submit(self, task: _Task, launches: Round) -> None:
        state = task.state
        if state.rungs is not None:
            launches = {
                name: replace(launch, stop_signal=self._signals.key(launch.key))
                if state.rungs.judges(launch.key)
                else launch
                for name, launch in launches.items()
            }
        task.launches = {launch.key: launch for launch in launches.values()}
        # each model of a chain begins with the one above it
        chained = [launch for launch in launches.values() if launch.then]
        ladders = {each["job"]["key"] for launch in chained for each in launch.then}
        ladders |= {launch.key for launch in chained}
        task.left = task.launches.keys() | ladders
        task.read = ladders | models_above(launches.values())
        self._task_of |= dict.fromkeys(task.left, task)
        self.names |= {plan.key: f"{state.task.name} {plan.name}" for plan in state.plans}
        self.names |= {launch.key: name for name, launch in launches.items()}
        self._settle()
        if len(task.left) > 1:
            self.site.progress.line(f"{state.task.name}: {len(task.left)} trainings to come")
        self._turns.wait(state.task.name, task.launches)

    def _settle(self) -> None:
        left = {key for task in self._tasks.values() for key in task.left}
        read = {key for task in self._tasks.values() for key in task.read}
        self.site.house.settle(left, self.most, read)

    def _note_failures(self, task: _Task) -> None:
        """Of what left no model and was not stopped early; the runs are ended, too."""
        ends, task.ends = task.ends, []
        for launch, report, death in ends:
            failed = report.get("failures", {}) if launch.then and death is None else {}
            for each in [launch, *(Launch(**fields) for fields in launch.then)]:
                reason = failed.get(each.key, death or report.get("failure"))
                if is_stopped(self.site, task.state, each.key):
                    continue
                # of a trial whose process died, what is home is not lost
                if reason and (each.is_trunk or trained(each) is None):
                    self.site.tracking.writer(each.run_id).end("FAILED", reason)
                    task.state.failed.append(failure_of(each, reason))

    def _look(self) -> list[Machine]:
        """The cluster's machines; they come and go."""
        now = time.monotonic()
        if now - self._looked >= machines.LOOK_EVERY_S:
            self._machines, self._looked = machines.groups(self._labels), now
        return self._machines

    def _wait_for_machines(self, name: str) -> bool:
        """Whether a trial of a task fits the cluster, in time; nothing is on its way that could be
        held up by that."""
        resources = self.site.spec.resources_of(self._tasks[name].state.task)
        try:
            machines.wait_to_fit(resources, name, self.site.progress.line)
        except CampaignError as error:
            self._give_up(self._tasks.values(), error)
            return False
        return True
