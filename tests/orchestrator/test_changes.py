"""A spec that changes under a campaign's name: more may be asked for, less is not done silently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign import Campaign
from orchestrator.changes import Change, SpecChangedError, check_change, compare
from orchestrator.layout import Layout
from orchestrator.records import ModelRecord
from orchestrator.search import plan_trials
from orchestrator.spec import CampaignSpec
from orchestrator.spec_after import MeasureSpec
from orchestrator.spec_io import dump_spec
from orchestrator.tracking import Tracking
from orchestrator.trial_keys import dense_key
from tests.orchestrator.record_factory import make_dense, make_trial
from tests.orchestrator.small import GPT2, docs_task

TASK = docs_task("lm", steps=10)
SPEC: dict[str, Any] = {
    "name": "changing",
    "tasks": [TASK],
    "method": {"kind": "flop-l0", "steps": 25},
    "search": {"density": [0.5], "trials_per_density": 2, "penalty_lr": {"uniform": [0.1, 1]}},
}
REPEATS = {"density": [0.5], "repeats": 3}


def spec_with(**changes: Any) -> CampaignSpec:
    return CampaignSpec.model_validate(SPEC | changes)


def task_with(**changes: Any) -> dict[str, Any]:
    return {"tasks": [TASK | changes]}


def finished(spec: CampaignSpec, data: str = "data") -> dict[str, ModelRecord]:
    """Records of all that a spec asks for, the first draws the best."""
    records: dict[str, ModelRecord] = {}
    for task in spec.tasks:
        dense = make_dense(task=task.name)
        key = dense_key(spec, task, data)
        records[key] = replace(dense, key=key)
        qualities: dict[str, float] = {}
        while True:
            plans = plan_trials(spec, task, data, qualities)
            if len(plans) == len(qualities):
                break
            qualities = {plan.key: float(place) for place, plan in enumerate(plans)}
        for plan in plans:
            validation = {"bits_per_character": qualities[plan.key]}
            trial = replace(make_trial(task=task.name), validation=validation)
            records[plan.key] = replace(trial, key=plan.key)
    return records


def change(before: CampaignSpec, after: CampaignSpec, data: str = "data") -> Change:
    hashes = {task.name: data for task in after.tasks}
    return compare(before, after, hashes, finished(before))


class TestCompare:
    @pytest.mark.parametrize(
        ("before", "after", "differences"),
        [
            ({}, {"search": SPEC["search"] | {"trials_per_density": 3}}, 1),
            ({"search": REPEATS}, {"search": REPEATS | {"repeats": 5}}, 1),
            ({"search": REPEATS}, {"search": REPEATS | {"density": [0.5, 0.2]}}, 1),
            ({}, {"tasks": [TASK | {"name": "first"}, TASK]}, None),
            ({}, {"select": {"then": "fastest"}, "promote": {"gates": ["bytes <= 90%"]}}, 2),
            ({}, {"measure": {"repeats": 99}, "resources": {"concurrent_trials": 4}}, 2),
            ({}, {"storage": "/elsewhere", "tracking": {"uri": "http://user:secret@host"}}, 0),
            # the same text in another place: what it says counts
            ({}, task_with(data={"source": "files", "train": "/a.txt"}), None),
            ({}, {}, 0),
        ],
    )
    def test_what_asks_for_more_keeps_what_is_there(
        self, before: dict[str, Any], after: dict[str, Any], differences: int | None
    ):
        found = change(spec_with(**before), spec_with(**after))
        assert found.dropped == []
        assert differences is None or len(found.differences) == differences

    @pytest.mark.parametrize(
        ("after", "difference", "dropped"),
        [
            ({"method": {"kind": "flop-l0", "steps": 50}}, "method.steps: 25 -> 50", 2),
            ({"method": {"kind": "np-l0", "steps": 25}}, "method.kind: flop-l0 -> np-l0", 2),
            ({"seed": 4}, "seed: 0 -> 4", 3),
            (task_with(evaluate_every=7), "tasks.lm.evaluate_every: 100 -> 7", 3),
            (
                {"search": SPEC["search"] | {"trials_per_density": 1}},
                "search.trials_per_density: 2 -> 1",
                1,
            ),
            (
                {"search": SPEC["search"] | {"density": [0.4]}},
                "search.density: [0.5] -> [0.4]",
                2,
            ),
            ({"tasks": [TASK | {"name": "other"}]}, "tasks.lm.kind: language-modelling -> none", 3),
        ],
    )
    def test_what_asks_for_something_else_is_told_with_its_cost(
        self, after: dict[str, Any], difference: str, dropped: int
    ):
        found = change(spec_with(), spec_with(**after))
        assert difference in found.differences
        assert len(found.dropped) == dropped
        assert found.num_models == 3

    def test_other_data_leave_all_behind(self):
        files = spec_with(**task_with(data={"source": "files", "train": "/a.txt"}))
        found = change(spec_with(), files, data="other data")
        assert (len(found.dropped), found.num_models) == (3, 3)

    def test_what_was_never_finished_is_not_missed(self):
        before, after = spec_with(), spec_with(method={"kind": "flop-l0", "steps": 50})
        dense = dict(list(finished(before).items())[:1])
        found = compare(before, after, {"lm": "data"}, dense)
        assert (found.dropped, found.num_models) == ([], 1)

    def test_repeats_follow_from_what_was_best(self):
        """They are asked for because of what has finished, and by no spec alone."""
        tuned = SPEC["search"] | {"repeats": 2}
        before = spec_with(search=tuned)
        records = finished(before)
        assert len(records) == 4
        after = spec_with(search=tuned, measure={"repeats": 99})
        assert compare(before, after, {"lm": "data"}, records).dropped == []
        fewer = spec_with(search=SPEC["search"])
        assert len(compare(before, fewer, {"lm": "data"}, records).dropped) == 1

    def test_a_long_value_and_a_long_list_are_cut(self):
        config = {"config": {"x": "y" * 500}}
        found = change(spec_with(), spec_with(**task_with(model=GPT2 | config)))
        assert max(len(line) for line in found.text.splitlines()) < 200
        many = {f"method-{i}": {"kind": "adaptive"} for i in range(60)}
        found = change(spec_with(), spec_with(search={"density": [0.5], "methods": many}))
        assert len(found.text.splitlines()) == 21
        assert "and 4" in found.text.splitlines()[-1]


def test_draws_that_were_stopped_keep_nobody_waiting():
    """What follows from the others is asked for although they have no model."""
    search = SPEC["search"] | {"repeats": 2, "trials_per_density": 3}
    before = spec_with(
        search=search | {"stopping": {"at_least": 2}}, method={"kind": "flop-l0", "steps": 1000}
    )
    records = finished(before)
    draws = [p.key for p in plan_trials(before, before.tasks[0], "data")]
    del records[draws[-1]]
    after = before.model_copy(update={"seed": before.seed, "measure": MeasureSpec(repeats=11)})
    stopped = compare(before, after, {"lm": "data"}, records, stopped=draws[-1:])
    assert stopped.differences
    assert (stopped.dropped, stopped.num_models) == ([], 4)
    # without the block it is to be trained, and may be the best
    without = spec_with(search=search, method={"kind": "flop-l0", "steps": 1000})
    change = compare(before, without, {"lm": "data"}, records, stopped=draws[-1:])
    assert len(change.dropped) == 1


class TestCheck:
    @pytest.fixture
    def layout(self, tmp_path: Path) -> Layout:
        """Of a campaign that has begun with SPEC and finished."""
        layout = Layout(tmp_path, "changing")
        layout.create()
        layout.spec.write_text(dump_spec(spec_with(), redact=True))
        for key, record in finished(spec_with()).items():
            layout.model(key).mkdir()
            record.save(layout.record(key))
        return layout

    def check(self, layout: Layout, spec: CampaignSpec, accept: bool = False) -> list[str]:
        said: list[str] = []
        check_change(layout, spec, {"lm": "data"}, accept, said.append)
        return said

    def test_it_is_refused_before_anything_is_written(self, layout: Layout, store: str):
        before = layout.spec.read_bytes()
        changed = spec_with(seed=4, storage=str(layout.storage))
        with pytest.raises(SpecChangedError, match="3 of its 3 finished models") as caught:
            Campaign(changed, lambda text: None).run()
        assert "  seed: 0 -> 4" in str(caught.value)
        assert "--changed" in str(caught.value)
        assert caught.value.exit_code == 2
        assert layout.spec.read_bytes() == before
        assert Tracking(store, "changing", layout.artifacts).sweep("KILLED", "") == 0

    def test_who_asks_for_it_gets_it(self, layout: Layout):
        (said,) = self.check(layout, spec_with(seed=4), accept=True)
        assert said.splitlines() == [
            "the spec has changed; of 3 finished models 3 models left behind:",
            "  seed: 0 -> 4",
        ]

    def test_more_is_said_and_done(self, layout: Layout):
        (said,) = self.check(layout, spec_with(select={"then": "fastest"}))
        assert said.startswith("the spec has changed; of 3 finished models all stay:\n  select.")

    def test_the_same_again_says_nothing(self, layout: Layout):
        assert self.check(layout, spec_with()) == []

    def test_without_a_model_any_change_will_do(self, layout: Layout):
        for key in finished(spec_with()):
            layout.record(key).unlink()
        assert self.check(layout, spec_with(seed=4)) == []

    def test_a_record_that_is_damaged_is_nobodys(self, layout: Layout):
        for key in finished(spec_with()):
            layout.record(key).write_text("{}")
        assert self.check(layout, spec_with(seed=4)) == []

    def test_a_spec_of_before_that_cannot_be_read_stops_nobody(self, layout: Layout):
        layout.spec.write_text("name: changing\nmethodd: {}\n")
        (said,) = self.check(layout, spec_with(seed=4))
        assert "cannot be compared" in said
