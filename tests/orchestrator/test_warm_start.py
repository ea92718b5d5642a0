"""Draws that begin with what earlier campaigns found: which ones, how many, and what is learnt."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.changes import compare
from orchestrator.draws import Draws
from orchestrator.earlier import EarlierTrial, Readings, task_digest
from orchestrator.errors import StorageError
from orchestrator.method_search import TrialPlan, methods_of
from orchestrator.search import expected_trials, plan_trials
from orchestrator.spec import CampaignSpec
from orchestrator.spec_method import MethodSpec
from orchestrator.warm_start import Warmth
from tests.orchestrator.record_factory import make_trial
from tests.orchestrator.small import docs_task

SEARCH: dict[str, Any] = {
    "density": [0.5, 0.25],
    "trials_per_density": 3,
    "finetune_learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "warm_start": ["first"],
}
NUMBERS = itertools.count()


def spec_with(method: dict[str, Any] | None = None, **search: Any) -> CampaignSpec:
    values = {"name": "c", "tasks": [docs_task("lm", steps=10)], "search": SEARCH | search}
    return CampaignSpec.model_validate(values | {"method": {"steps": 20} | (method or {})})


DIGEST = task_digest(spec_with().tasks[0])


def earlier(density: float, rate: float, loss: float, **changes: Any) -> EarlierTrial:
    """A trial of the same task and method as today's, unless something is changed."""
    method = MethodSpec(steps=20, density=density, finetune_learning_rate=rate)
    config = method.model_dump(mode="json") | changes.pop("config", {})
    fields: dict[str, Any] = {"method_name": "adaptive", "task_digest": DIGEST, "excess": 0.0}
    fields |= {"campaign": "first", "run_id": f"run{next(NUMBERS)}"}
    return EarlierTrial(config=config, loss=loss, **(fields | changes))


def plans_of(
    spec: CampaignSpec,
    known: Sequence[EarlierTrial],
    ended: Sequence[TrialPlan] = (),
    draws: Draws | None = None,
) -> list[TrialPlan]:
    finished = {plan.key: plan.method.finetune_learning_rate for plan in ended}
    return plan_trials(spec, spec.tasks[0], "d", finished, draws=draws, earlier=known)


def rates(plans: Sequence[TrialPlan], density: float) -> list[float]:
    return [p.method.finetune_learning_rate for p in plans if p.method.density == density]


def warmth(spec: CampaignSpec, known: Sequence[EarlierTrial]) -> Warmth:
    (method,) = methods_of(spec, spec.tasks[0], "d", known)
    return method.warmth


KNOWN = [
    earlier(0.5, 3e-3, 2.0),
    earlier(0.5, 2e-3, 1.0),
    earlier(0.5, 1e-3, 3.0),
    earlier(0.3, 4e-3, 0.5),
    earlier(0.2, 5e-3, 0.6),
]


class TestDraws:
    def test_the_first_is_the_best_at_the_nearest_density(self):
        plans, cold = plans_of(spec_with(), KNOWN), plans_of(spec_with(), [])
        assert rates(plans, 0.5) == [2e-3, *rates(cold, 0.5)[:2]]
        # 0.3 and 0.2 are equally near, so the better one
        assert rates(plans, 0.25) == [4e-3, *rates(cold, 0.25)[:2]]
        assert [plan.source for plan in plans if plan.source] == [KNOWN[1], KNOWN[3]]
        assert [plan.repeat for plan in plans] == [0] * 6
        assert expected_trials(spec_with(), spec_with().tasks[0]) == len(plans) == len(cold)

    def test_top_says_how_many_and_no_more_than_were_asked_for(self):
        warm = {"campaigns": ["first"], "top": 2}
        assert rates(plans_of(spec_with(warm_start=warm), KNOWN), 0.5)[:2] == [2e-3, 3e-3]
        warm["top"] = 9
        plans = plans_of(spec_with(warm_start=warm, trials_per_density=2), KNOWN)
        assert rates(plans, 0.5) == [2e-3, 3e-3]
        assert rates(plans, 0.25) == [4e-3, 5e-3]
        assert len(plans_of(spec_with(warm_start=warm, trials_per_density=9), KNOWN)) == 18

    def test_an_earlier_setting_is_the_mean_of_its_runs(self):
        lucky = [earlier(0.5, 9e-3, loss) for loss in (0.1, 3.0)]
        assert rates(plans_of(spec_with(), [*lucky, *KNOWN]), 0.5)[0] == 2e-3
        # whose size was missed is worse, whatever its quality
        missed = earlier(0.5, 9e-3, 0.1, excess=0.2)
        assert rates(plans_of(spec_with(), [missed, *KNOWN]), 0.5)[0] == 2e-3

    def test_one_density_is_tuned(self):
        plans = plans_of(spec_with(tune_at=0.25), KNOWN)
        assert [(p.method.density, p.method.finetune_learning_rate) for p in plans[:1]] == [
            (0.25, 4e-3)
        ]
        # what follows from it says so too
        best = {plan.key: float(place) for place, plan in enumerate(plans)}
        after = plan_trials(spec_with(tune_at=0.25), spec_with().tasks[0], "d", best, earlier=KNOWN)
        assert [(p.method.density, p.source) for p in after[3:]] == [(0.5, KNOWN[3])]

    def test_a_ladder_begins_with_the_best_at_its_end(self):
        plans = plans_of(spec_with(ladder=True), KNOWN)
        assert len(plans) == 6
        assert [(p.method.density, p.method.finetune_learning_rate) for p in plans[:2]] == [
            (0.5, 4e-3),
            (0.25, 4e-3),
        ]
        assert [plan.source for plan in plans] == [KNOWN[3]] * 2 + [None] * 4

    def test_a_short_list_has_each_value_once(self):
        spec = spec_with(finetune_learning_rate=[1e-3, 2e-3, 3e-3])
        plans = plans_of(spec, KNOWN)
        assert sorted(rates(plans, 0.5)) == [1e-3, 2e-3, 3e-3]
        assert rates(plans, 0.5)[0] == 2e-3

    def test_repeats_and_finalists_say_where_their_values_are_from(self):
        spec = spec_with(repeats=2, finalists=3, density=[0.5])
        finished = {p.key: 0.0 if p.source else 1.0 for p in plans_of(spec, KNOWN)}
        for _ in range(2):
            plans = plan_trials(spec, spec.tasks[0], "d", finished, earlier=KNOWN)
            finished |= {plan.key: 0.0 for plan in plans if plan.key not in finished}
        assert [(p.repeat, p.source is not None) for p in plans] == [
            (0, True),
            (0, False),
            (0, False),
            (1, True),
            (2, True),
        ]


class TestSpaces:
    @pytest.mark.parametrize(
        ("trial", "reason"),
        [
            (earlier(0.5, 2e-2, 0.1), "with finetune_learning_rate outside 0.0001 to 0.01"),
            (earlier(0.5, 1e-3, 0.1, config={"steps": "x"}), "that this version does not know"),
        ],
    )
    def test_what_is_not_searched_today_is_left_out_and_counted(
        self, trial: EarlierTrial, reason: str
    ):
        found = warmth(spec_with(), [*KNOWN, trial, trial])
        assert (len(found.fitting), found.total) == (5, 7)
        assert found.text.startswith("5 of 7 earlier trials have settings that it searches; left")
        assert f"2 with {reason.removeprefix('with ')}".replace("2 with that", "that") in found.text
        assert rates(plans_of(spec_with(), [*KNOWN, trial]), 0.5)[0] == 2e-3

    def test_methods_are_of_one_kind_and_name(self):
        methods = {"adaptive": {}, "near": {"trials_per_density": 1}, "plain": {"kind": "low-rank"}}
        spec = spec_with(methods=methods)
        other_kind = earlier(0.5, 7e-3, 0.0, config={"kind": "flop-l0"})
        plans = plans_of(spec, [*KNOWN, other_kind])
        sources = Counter(plan.method_name for plan in plans if plan.source)
        assert sources == {"adaptive": 2}
        assert 7e-3 not in rates(plans, 0.5)
        named = [replace(trial, method_name="near") for trial in KNOWN]
        assert {p.method_name for p in plans_of(spec, named) if p.source} == {"near"}

    def test_a_method_that_searches_nothing_needs_nothing(self):
        spec = spec_with(methods={"adaptive": {"finetune_learning_rate": 1e-3}, "x": {}})
        plans = plans_of(spec, KNOWN)
        assert [p.source for p in plans if p.method_name == "adaptive"] == [None, None]

    def test_other_conditions_give_draws_and_come_after_the_same(self):
        other = earlier(0.5, 9e-3, 0.0, task_digest="of another model")
        shorter = earlier(0.5, 8e-3, 0.0, config={"steps": 10})
        found = warmth(spec_with(), [other, shorter, *KNOWN])
        assert [each.is_comparable for each in found.fitting] == [False, False, *[True] * 5]
        assert "7 of 7 earlier trials have settings that it searches, 5 of them with" in found.text
        assert [each.trial for each in found.best(0.5, 3)] == [KNOWN[1], KNOWN[0], KNOWN[2]]
        assert rates(plans_of(spec_with(), [other]), 0.5)[0] == 9e-3
        tried = found.observed([0.5, 0.25])
        assert [each.objectives for each in tried] == [(2.0, 0.5), (1.0, 0.5), (3.0, 0.5)]
        assert tried[0].values == {"density": 0.5, "finetune_learning_rate": 3e-3}


class TestLearning:
    """With `sampler: gp`."""

    GP: dict[str, Any] = {"sampler": "gp", "startup": 4, "batch": 2}  # noqa: RUF012

    def test_it_begins_with_the_best_and_knows_what_they_came_to(self):
        spec, draws = spec_with(**self.GP), Draws()
        first = plans_of(spec, KNOWN, draws=draws)
        # three comparable trials at its densities leave one of four starts, and two are the best
        assert [(p.method.density, p.source) for p in first] == [(0.5, KNOWN[1]), (0.25, KNOWN[3])]
        assert len(plans_of(spec, KNOWN[3:])) == 4, "densities of others teach nothing"
        second = plans_of(spec, KNOWN, first, draws)
        assert (second[:2], len(second)) == (first, 4)
        assert [plan.source for plan in second[2:]] == [None, None]
        third = plans_of(spec, KNOWN, second, draws)
        assert third[:4] == second
        assert len(third) in (5, 6), "the last two may be one"

    def test_what_they_came_to_decides_what_is_suggested(self):
        spec = spec_with(**self.GP)
        first = plans_of(spec, KNOWN)
        # the same settings begin, the others were as good as they are bad
        other = [replace(KNOWN[0], loss=1.01), KNOWN[1], replace(KNOWN[2], loss=40.0), *KNOWN[3:]]
        assert plans_of(spec, other) == [first[0], first[1]]
        assert plans_of(spec, KNOWN, first)[2:] != plans_of(spec, other, first)[2:]
        assert plans_of(spec, KNOWN, first) == plans_of(spec, KNOWN, first), "a pure function"

    def test_they_are_no_trials_of_this_campaign(self):
        """A finalist is one of its own, however good they were."""
        spec, draws = spec_with(**self.GP, finalists=2), Draws()
        known = [replace(trial, loss=-100.0) for trial in KNOWN]
        ended: list[TrialPlan] = []
        while len(plans := plans_of(spec, known, ended, draws)) > len(ended):
            ended = plans
        assert Counter(plan.repeat for plan in ended) == {0: 6, 1: len(ended) - 6}
        assert len(ended) > 6


class TestKept:
    def test_a_reading_is_found_again(self, tmp_path: Path):
        spec, path = spec_with(), tmp_path / "warm-start.json"
        task, readings = spec.tasks[0], Readings(path)
        assert not readings.knows(spec, task, "d")
        readings.add(spec, task, "d", KNOWN)
        assert not path.exists(), "kept when it is said so"
        readings.save()
        again = Readings(path)
        assert again.of(spec, task, "d") == KNOWN
        assert Readings(text=path.read_text()).of(spec, task, "d") == KNOWN
        # how many are used is decided later, whose they are is not
        more = spec_with(warm_start={"campaigns": ["first"], "top": 2})
        assert again.of(more, task, "d") == KNOWN
        other = spec_with(warm_start=["first", "second"])
        assert again.knows(spec_with(warm_start=None), task, "d")
        assert again.of(spec_with(warm_start=None), task, "d") == []
        for asked, data in ((other, "d"), (spec, "other")):
            assert not again.knows(asked, task, data)
        again.add(other, task, "d", [])
        assert again.knows(other, task, "d")
        assert again.of(spec, task, "d") == KNOWN

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"a": 1}', '{"a": [{}]}', '{"a": [{"campaign": 4}]}']
    )
    def test_a_damaged_file_is_told_of(self, tmp_path: Path, text: str):
        path = tmp_path / "warm-start.json"
        path.write_text(text)
        with pytest.raises(StorageError, match=r"warm-start\.json cannot be read: .*read anew"):
            Readings(path)

    def test_what_cannot_be_kept_is_told_of(self, tmp_path: Path):
        with pytest.raises(StorageError, match="cannot write"):
            Readings(tmp_path / "away" / "warm-start.json").save()

    def test_a_file_of_a_later_version_is_refused(self, tmp_path: Path):
        spec, path = spec_with(), tmp_path / "warm-start.json"
        readings = Readings(path)
        readings.add(spec, spec.tasks[0], "d", KNOWN)
        readings.save()
        values = json.loads(path.read_text())
        next(iter(values.values()))[0]["more"] = 1
        path.write_text(json.dumps(values))
        with pytest.raises(StorageError, match="more"):
            Readings(path)


def test_a_change_of_it_is_a_change_of_the_spec():
    """Trials that it brought are left behind when it goes, and nothing is when it stays."""
    old, readings = spec_with(), Readings()
    readings.add(old, old.tasks[0], "d", KNOWN)
    records = {
        plan.key: replace(make_trial(task="lm"), key=plan.key) for plan in plans_of(old, KNOWN)
    }
    hashes = {"lm": "d"}
    same = compare(old, old, hashes, records, readings=readings)
    assert (same.differences, same.dropped) == ([], [])
    found = compare(old, spec_with(warm_start=None), hashes, records, readings=readings)
    assert "search.warm_start.campaigns: ['first'] -> none" in found.differences
    assert len(found.dropped) == 2
    more = spec_with(warm_start={"campaigns": ["first"], "top": 2})
    found = compare(old, more, hashes, records, readings=readings)
    assert found.differences == ["search.warm_start.top: 1 -> 2"]
    assert len(found.dropped) == 2, "which the second earlier settings take the places of"
