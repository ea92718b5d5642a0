"""How a campaign stands, from what its driver has written so far."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.layout import Layout
from orchestrator.records import CurvePoint
from orchestrator.spec import CampaignSpec
from orchestrator.status import CampaignStatus, _expected, _num_steps, campaign_status
from orchestrator.tracking import Tracking
from orchestrator.tracking.journal import Stamped
from orchestrator.tracking.reading import RunReader
from tests.orchestrator.record_factory import make_trials
from tests.orchestrator.small import docs_task

SPEC: dict[str, Any] = {
    "name": "standing",
    "tasks": [docs_task("letters", steps=40)],
    "method": {"kind": "low-rank", "steps": 25},
    "search": {"density": [0.5, 0.25], "repeats": 2},
    "resources": {"concurrent_trials": 2},
}


@dataclass
class Standing:
    """A campaign of which some has happened."""

    spec: CampaignSpec
    layout: Layout
    tracking: Tracking
    parent: str

    def run(self, name: str, method: str | None, seconds: float = 0, **values: Any) -> str:
        """A model's run; with seconds one that is finished after these."""
        params = {"task": "letters", "dense": {"steps": 40}}
        if method is not None:
            params["method"] = {"kind": method, "steps": 25}
        run_id = self.tracking.model_run(name, self.parent, f"letters {name}", params, {})
        if seconds:
            record = replace(make_trials()[0], train_seconds=seconds, **values)
            self.tracking.writer(run_id).record(record)
            self.tracking.writer(run_id).end("FINISHED")
        return run_id

    def curve(self, run_id: str, *points: CurvePoint) -> None:
        stamped = [Stamped(at_ms=point.step, point=point) for point in points]
        self.tracking.writer(run_id).points(stamped, "bits_per_character")

    def look(self) -> CampaignStatus:
        reader = RunReader(self.tracking.uri, "standing")
        return campaign_status(self.spec, reader, self.layout)


@pytest.fixture
def standing(tmp_path: Path, store: str) -> Standing:
    layout = Layout(tmp_path, "standing")
    layout.create()
    tracking = Tracking(store, "standing", layout.artifacts)
    parent = tracking.task_run("standing", "letters", "", {})
    return Standing(CampaignSpec.model_validate(SPEC), layout, tracking, parent)


def point(step: int, **values: Any) -> CurvePoint:
    return CurvePoint(step=step, phase="hold", seconds=2.0 * step, train_loss=3.0, **values)


def test_models_that_train_wait_and_are_done(standing: Standing):
    standing.run("dense", None, seconds=100)
    training = standing.run("density=0.5", "low-rank")
    standing.curve(training, point(5, expected_density=0.8, validation=2.5), point(10))
    standing.run("density=0.25", "low-rank")
    failed = standing.run("broken", "from-scratch")
    standing.tracking.writer(failed).end("FAILED", "the loss is not finite")
    with standing.layout.locked():
        status = standing.look()
    models = {model.name: model for model in status.models}
    assert [model.state for model in status.models] == ["finished", "training", "waiting", "failed"]
    now = models["letters density=0.5"]
    assert (now.step, now.num_steps) == (10, 25)
    assert (now.density, now.validation, now.seconds) == (0.8, 2.5, 20)
    done = models["letters dense"]
    assert (done.step, done.num_steps, done.seconds) == (40, 40, 100)
    assert models["letters broken"].reason == "the loss is not finite"
    assert models["letters broken"].num_steps == 65
    # one dense and two densities twice; two have ended, two fifths of another are done
    assert status.num_models == 5
    assert status.seconds_left == pytest.approx(100 * (3 - 10 / 25) / 2)
    assert status.driver is not None
    assert not status.over


def test_a_finished_model_has_its_own_figures(standing: Standing):
    trial = make_trials()[0]
    run = standing.run("density=0.5", "low-rank")
    standing.curve(run, point(25, validation=9.0, expected_density=0.9))
    standing.tracking.writer(run).record(trial)
    standing.tracking.writer(run).end("FINISHED")
    (model,) = standing.look().models
    assert trial.densities is not None
    assert model.density == trial.densities.prunable
    assert model.validation == trial.validation["bits_per_character"]


def test_without_a_driver_what_is_open_is_stopped(standing: Standing):
    standing.curve(standing.run("dense", None), point(7))
    (model,) = standing.look().models
    assert (model.state, model.step) == ("stopped", 7)
    assert standing.look().seconds_left is None
    # a machine that does not see the campaign's folder cannot know
    elsewhere = replace(standing, layout=Layout(Path("/nowhere"), "standing"))
    (model,) = elsewhere.look().models
    assert model.state == "training"


def test_what_was_stopped_early_is_told_from_what_was_interrupted(standing: Standing):
    standing.run("dense", None, seconds=100)
    early, interrupted = (standing.run(f"density={d}", "low-rank") for d in (0.5, 0.25))
    standing.curve(early, point(10, validation=2.5))
    standing.tracking.writer(early).stopped(0.4, "place 3 of 4", 12)
    standing.tracking.writer(interrupted).end("KILLED", "interrupted")
    _, first, second = standing.look().models
    assert (first.state, first.reason, first.step) == ("stopped", "place 3 of 4", 12)
    assert (second.state, second.reason, second.step) == ("stopped", "", 0)
    assert not standing.tracking.finished("density=0.5")
    # one has ended and the other has not: with two repeats there are three more to train
    with standing.layout.locked():
        assert standing.look().seconds_left == pytest.approx(100 * 3 / 2)
    # asked for again, without rungs, it is a trial like any other
    assert standing.run("density=0.5", "low-rank") == early
    standing.tracking.writer(early).end("FINISHED")
    assert not any("stopped" in tag for tag in standing.tracking.client.get_run(early).data.tags)


def test_it_is_over_when_all_tasks_are(standing: Standing):
    assert not standing.look().over
    standing.tracking.writer(standing.parent).end("FINISHED")
    assert standing.look().over


def test_looking_keeps_no_driver_out(standing: Standing):
    """Each look holds the lock for an instant."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            standing.layout.driver()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(30):
            with standing.layout.locked():
                assert standing.layout.driver() is not None
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(("ladder", "trainings"), [(None, 6), ({"by": "trunk"}, 9), (True, 6)])
def test_trunks_of_ladders_are_trainings_too(ladder: Any, trainings: int):
    search = {"density": [0.5, 0.25], "repeats": 3, "ladder": ladder}
    method = {"kind": "adaptive", "steps": 25}
    spec = CampaignSpec.model_validate(SPEC | {"search": search, "method": method})
    assert _expected(spec, spec.tasks[0]) == trainings


def test_a_model_of_a_ladder_has_the_steps_behind_it():
    own = {"method.kind": "adaptive", "method.steps": "25", "dense.steps": "40"}
    assert _num_steps(own) == 25
    assert _num_steps(own | {"ladder.steps": "36"}) == 36
