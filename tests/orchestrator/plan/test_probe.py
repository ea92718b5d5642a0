"""A probe trains for real: tiny tasks, in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowrank.export import WEIGHTS
from orchestrator.errors import CampaignError
from orchestrator.plan.figures import at_density
from orchestrator.plan.probe import (
    Crew,
    Machine,
    ProbeError,
    crew_for,
    probe_task,
    probed_models,
)
from orchestrator.plan.profile import Profile, TaskProfile, check_profile
from orchestrator.plan.work import FINETUNE, GATED, task_work
from orchestrator.plan.worker import FEWEST
from orchestrator.spec import CampaignSpec, Resources
from tests.orchestrator.plan.specs import campaign, overhead, profile
from tests.orchestrator.small import Family, method


def spec_of(family: Family, **fields: Any) -> CampaignSpec:
    how = method(steps=40).model_dump()
    values = {"search": {"density": [0.5, 0.4, 0.25]}} | fields
    task = family.task.model_dump(mode="json")
    return campaign(tasks=[task], method=how, measure={"batch": [1], "repeats": 7}, **values)


def probe(family: Family, spec: CampaignSpec) -> TaskProfile:
    task = spec.tasks[0]
    work = task_work(spec, task)
    found, start_s = probe_task(spec, task, work, family.data, {}, lambda _: None, 0.05)
    assert start_s > 0
    return found


def test_a_probe_trains_what_a_campaign_trains(lm: Family):
    spec = spec_of(lm)
    found = probe(lm, spec)
    assert [(cost.setting.split("-")[0], cost.density) for cost in found.costs] == [
        ("dense", 1.0),
        ("flop", 0.25),
        ("flop", 0.5),
    ]
    # the sizes are those of the models that the family exported, at the same densities; which
    # layers got the ranks differs, and with it what rounding leaves
    for cost, record in zip(found.costs[1:], reversed(lm.trials), strict=True):
        exported = (Path(record.export) / WEIGHTS).stat().st_size
        assert cost.weights_bytes == pytest.approx(exported, rel=0.02)
        assert cost.steps == {GATED: FEWEST // 2, FINETUNE: FEWEST // 2}
        assert set(cost.step_s) == {GATED, FINETUNE}
        assert all(step.value > 0 for step in cost.step_s.values())
        assert cost.state_bytes[GATED] > 3 * cost.weights_bytes
        assert cost.setup_s.value > 0
        assert cost.test_s.value > 0
    # Python and torch alone take as much
    assert min(cost.memory_bytes for cost in found.costs) > 50e6
    assert found.timing_s.value > 0
    assert found.logged_bytes > 100e3
    assert (found.world, found.groups) == (1, 1)
    middle = at_density(found.of(task_work(spec, spec.tasks[0]).trials[1]), 0.4)
    low, high = found.costs[1].weights_bytes, found.costs[2].weights_bytes
    assert low < middle.weights_bytes < high


def test_two_workers_train_as_two_processes(classes: Family, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestrator.plan.probe.this_machine", lambda: Machine(cpus=2, gpus=0))
    spec = spec_of(classes, resources={"workers": 2}, search={"density": [0.5]})
    found = probe(classes, spec)
    assert (found.world, found.groups) == (2, 1)
    # each holds all of the model, and does half of the batch
    exported = (Path(classes.trials[0].export) / WEIGHTS).stat().st_size
    assert found.costs[1].weights_bytes == pytest.approx(exported, rel=0.02)


def test_what_goes_wrong_in_a_training_is_told(lm: Family):
    spec = spec_of(lm, search={"density": [0.0001]})
    with pytest.raises(ProbeError, match=r"the probe of flop-l0-\w+ 0.0001 failed: .*density"):
        probe(lm, spec)


def test_of_each_setting_the_ends_are_probed():
    methods = {"a": {"distill": 0.0}, "b": {"kind": "low-rank"}}
    spec = campaign(search={"density": [0.5, 0.3, 0.2], "methods": methods})
    found = [(m.method["kind"], m.density) for m in probed_models(task_work(spec, spec.tasks[0]))]
    assert found == [("flop-l0", 0.2), ("flop-l0", 0.5), ("low-rank", 0.2), ("low-rank", 0.5)]


@pytest.mark.parametrize(
    ("resources", "most", "cpus", "gpus", "world", "groups"),
    [
        ({"workers": 2}, 1, 2, 0, 2, 1),
        ({"workers": 1}, 4, 2, 0, 1, 2),
        ({"workers": 8, "cpus_per_worker": 4}, 4, 16, 0, 4, 1),
        ({"workers": 2, "cpus_per_worker": 8}, 4, 2, 0, 1, 1),
        ({"workers": 8, "gpus_per_worker": 1}, 1, 4, 2, 2, 1),
    ],
)
def test_as_many_processes_as_will_train(
    resources: dict[str, Any], most: int, cpus: int, gpus: int, world: int, groups: int
):
    found = crew_for(Resources.model_validate(resources), most, Machine(cpus=cpus, gpus=gpus))
    assert found == Crew(world=world, groups=groups)


def test_gpus_that_are_not_here_need_a_profile():
    asked = Resources(gpus_per_worker=1)
    with pytest.raises(ProbeError, match="--profile FILE"):
        crew_for(asked, 1, Machine(cpus=4, gpus=0))


class TestProfile:
    def make(self) -> Profile:
        tasks = {"letters": profile()}
        return Profile(version=2, machine={"cpu": "x"}, overhead=overhead(), tasks=tasks)

    def test_it_is_read_as_it_was_written(self, tmp_path: Path):
        path = tmp_path / "profile.json"
        self.make().save(path)
        assert Profile.load(path) == self.make()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "cannot be read: Expecting value"),
            ("[]", "should be"),
            ('{"version": 9}', "version must be 2, got 9"),
            ('{"version": 2}', "machine"),
        ],
    )
    def test_a_damaged_one_is_named(self, tmp_path: Path, text: str, message: str):
        path = tmp_path / "profile.json"
        path.write_text(text)
        with pytest.raises(CampaignError, match=message) as raised:
            Profile.load(path)
        assert str(path) in str(raised.value)

    def test_none(self, tmp_path: Path):
        with pytest.raises(CampaignError, match="cannot be read"):
            Profile.load(tmp_path / "none.json")

    def test_of_another_task_or_shape_or_method(self):
        described = {"model": "Small", "parameters": 7}
        found = check_profile(self.make(), "letters", described, [])
        assert found == self.make().tasks["letters"]
        with pytest.raises(CampaignError, match="no task 'words'; it has: letters"):
            check_profile(self.make(), "words", described, [])
        with pytest.raises(CampaignError, match="has parameters 7, the spec 8"):
            check_profile(self.make(), "letters", described | {"parameters": 8}, [])
        spec = campaign()
        trials = task_work(spec, spec.tasks[0]).trials
        with pytest.raises(CampaignError, match="no method of kind 'flop-l0'"):
            check_profile(self.make(), "letters", described, trials)
