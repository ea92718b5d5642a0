"""Which trials a spec asks for, and what makes two of them the same."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.method_search import TrialPlan
from orchestrator.search import expected_trials, plan_trials
from orchestrator.spec import CampaignSpec
from orchestrator.trial_keys import DISTILLED_CONTRACT, KIND_CONTRACT, dense_key, trial_key
from tests.orchestrator.small import GPT2, docs_task

TASK = docs_task("lm", steps=10)
SPEC: dict[str, Any] = {
    "name": "search",
    "seed": 7,
    "tasks": [TASK, TASK | {"name": "other"}],
    "method": {"kind": "flop-l0"},
    "search": {
        "density": [0.5, 0.3],
        "trials_per_density": 4,
        "penalty_lr": {"log_uniform": [0.001, 1]},
        "calibration_batches": {"uniform": [10, 400]},
    },
}

PLAN = """
import json, sys
from orchestrator.search import plan_trials
from orchestrator.spec import CampaignSpec
spec = CampaignSpec.model_validate(json.load(sys.stdin))
print(json.dumps([[plan.key, plan.name] for plan in plan_trials(spec, spec.tasks[0], "data")]))
"""


def spec_with(**changes: Any) -> CampaignSpec:
    method = SPEC["method"] | changes.pop("method", {})
    return CampaignSpec.model_validate(SPEC | {"method": method} | changes)


def search(**fields: Any) -> dict[str, Any]:
    return {"density": [0.5]} | fields


def plans(spec: CampaignSpec, task: int = 0, data: str = "data", **ended: Any) -> list[TrialPlan]:
    return plan_trials(spec, spec.tasks[task], data, **ended)


def quality(plan: TrialPlan) -> float:
    """Of a trial, if it were run: least for the rate nearest to 0.2."""
    return abs(math.log((plan.method.penalty_lr or 1) / 0.2)) + plan.seed / 100


@dataclass
class Ran:
    """What the rounds of a task came to."""

    rounds: list[list[TrialPlan]] = field(default_factory=list)
    finished: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def plans(self) -> list[TrialPlan]:
        return [plan for found in self.rounds for plan in found]


def run(spec: CampaignSpec, fails: Callable[[TrialPlan], bool] = lambda plan: False) -> Ran:
    """All rounds of a task, as the training stage drives them."""
    ran = Ran()
    while True:
        found = plans(spec, finished=ran.finished, failed=ran.failed)
        new = [p for p in found if p.key not in ran.finished and p.key not in ran.failed]
        if not new:
            return ran
        ran.rounds.append(new)
        for plan in new:
            if fails(plan):
                ran.failed.append(plan.key)
            else:
                ran.finished[plan.key] = quality(plan)


def test_every_density_gets_its_trials():
    found = plans(spec_with())
    assert Counter(plan.method.density for plan in found) == {0.5: 4, 0.3: 4}
    assert len({plan.key for plan in found}) == 8
    assert len({plan.name for plan in found}) == 8
    for plan in found:
        assert 0.001 <= plan.method.penalty_lr <= 1
        assert plan.searched == {
            name: getattr(plan.method, name)
            for name in ("density", "penalty_lr", "calibration_batches")
        }


def test_draws_spread_over_their_range():
    wide = search(trials_per_density=60, penalty_lr={"log_uniform": [0.001, 1]})
    rates = sorted(plan.method.penalty_lr for plan in plans(spec_with(search=wide)))
    assert sum(rate < 0.0316 for rate in rates) in range(18, 43)  # half of them, in logarithm
    flat = search(trials_per_density=60, penalty_lr={"uniform": [1, 3]})
    rates = [plan.method.penalty_lr for plan in plans(spec_with(search=flat))]
    assert min(rates) >= 1
    assert max(rates) <= 3
    assert sum(rate < 2 for rate in rates) in range(18, 43)


def test_another_process_plans_the_same(tmp_path: Path, bare_environment: dict[str, str]):
    result = subprocess.run(
        [sys.executable, "-c", PLAN],
        input=json.dumps(SPEC),
        cwd=tmp_path,
        env=bare_environment | {"PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout) == [[plan.key, plan.name] for plan in plans(spec_with())]


def test_tasks_and_seeds_draw_for_themselves():
    rates = [
        [plan.method.penalty_lr for plan in found]
        for found in (plans(spec_with()), plans(spec_with(), task=1), plans(spec_with(seed=8)))
    ]
    assert rates[0] != rates[1]
    assert rates[0] != rates[2]


def test_more_trials_keep_those_that_were_run():
    few, many = (
        plans(spec_with(search=SPEC["search"] | {"trials_per_density": n})) for n in (2, 4)
    )
    assert [plan.key for plan in many[:4]] == [plan.key for plan in few]


def test_equal_draws_are_one_trial():
    same = search(trials_per_density=20, penalty_lr=[0.1, 0.2])
    found = plans(spec_with(search=same))
    assert sorted(plan.method.penalty_lr for plan in found) == [0.1, 0.2]
    assert len(plans(spec_with(search=search(trials_per_density=5)))) == 1


def test_whole_numbers_are_drawn_for_steps():
    for plan in plans(spec_with()):
        steps = plan.searched["calibration_batches"]
        assert type(steps) is int
        assert f"calibration_batches={steps}" in plan.name.split()


def test_listed_values_stay_as_written():
    listed = search(density=[0.1234567, 0.1234568], penalty_lr=[0.987654321], steps=[5.0])
    found = plans(spec_with(search=listed))
    assert [plan.method.density for plan in found] == [0.1234567, 0.1234568]
    assert {plan.method.penalty_lr for plan in found} == {0.987654321}
    assert {repr(plan.searched["steps"]) for plan in found} == {"5"}
    # the names tell them apart: a campaign looks them up by name
    assert len({plan.name for plan in found}) == 2


def test_drawn_values_are_exact_in_names():
    for plan in plans(spec_with()):
        values = dict(part.split("=") for part in plan.name.split())
        assert {name: float(value) for name, value in values.items()} == plan.searched


def keys_of(spec: CampaignSpec, data: str = "data") -> tuple[str, str]:
    """Of the first task's dense reference, and of its first trial."""
    return dense_key(spec, spec.tasks[0], data), plans(spec, data=data)[0].key


@pytest.mark.parametrize(
    ("changes", "dense_too"),
    [
        ({"seed": 8}, True),
        ({"tasks": [TASK | {"dense": TASK["dense"] | {"steps": 11}}]}, True),
        ({"tasks": [TASK | {"model": GPT2 | {"config": {"n_layer": 3}}}]}, True),
        ({"tasks": [TASK | {"evaluate_every": 7}]}, True),
        ({"tasks": [TASK | {"precision": "bfloat16"}]}, True),
        ({"resources": {"workers": 2}}, True),
        ({"method": {"include": ["*attn*"]}}, True),
        ({"method": {"exclude": ["*lm_head*"]}}, True),
        ({"method": {"max_grad_norm": 0.5}}, True),
        ({"method": {"steps": 7}}, False),
        ({"method": {"distill": 0.123}}, False),
        ({"tasks": [TASK | {"method": {"steps": 1}}]}, False),
    ],
)
def test_what_decides_a_result_is_in_the_key(changes: dict[str, Any], dense_too: bool):
    dense, trial = keys_of(spec_with())
    dense_now, trial_now = keys_of(spec_with(**changes))
    assert trial_now != trial
    assert (dense_now != dense) == dense_too


def test_a_changed_kind_of_method_has_new_trials_and_no_other_kind(monkeypatch: pytest.MonkeyPatch):
    both = {"mine": {}, "theirs": {"kind": "flop-agp"}}
    before = plans(spec_with(search=search(methods=both)))
    monkeypatch.setitem(KIND_CONTRACT, "flop-agp", 99)
    after = plans(spec_with(search=search(methods=both)))
    assert {old.method_name for old, new in zip(before, after, strict=True) if old != new} == {
        "theirs"
    }


def test_only_trials_that_distil_a_clustered_model_have_a_contract_for_it(
    monkeypatch: pytest.MonkeyPatch,
):
    words = TASK | {"level": "word", "model": {"type": "adaptive-decoder"}}
    specs = {
        "clustered": spec_with(tasks=[words]),
        "hidden states only": spec_with(
            tasks=[words], method={"distill": 0, "distill_hidden": 0.1}
        ),
        "not distilled": spec_with(tasks=[words], method={"distill": 0}),
        "other": spec_with(),
    }
    before = {name: keys_of(spec) for name, spec in specs.items()}
    monkeypatch.setitem(DISTILLED_CONTRACT, "adaptive-decoder", 99)
    after = {name: keys_of(spec) for name, spec in specs.items()}
    changed = {name for name in specs if before[name] != after[name]}
    assert changed == {"clustered", "hidden states only"}
    assert before["clustered"][0] == after["clustered"][0], "dense references keep theirs"


def test_other_data_are_other_trials():
    one, other = keys_of(spec_with()), keys_of(spec_with(), "other")
    assert set(one).isdisjoint(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"storage": "/elsewhere"},
        {"tracking": {"uri": "http://127.0.0.1:1"}},
        {"name": "renamed"},
        {"tasks": [TASK]},
        {"measure": {"batch": [2], "repeats": 7}},
        {"select": {"then": "fastest"}},
        {"promote": {"gates": ["bytes <= 90%"]}},
        {"resources": {"concurrent_trials": 2}},
        {"resources": {"cpus_per_worker": 0.5}},
        # found under another path, the same content is the same data
        {"tasks": [TASK | {"data": {"source": "files", "train": "/elsewhere.txt"}}]},
    ],
)
def test_where_and_what_for_is_not(changes: dict[str, Any]):
    assert keys_of(spec_with(**changes)) == keys_of(spec_with())


def test_a_value_written_out_is_the_value_inherited():
    plain = spec_with()
    spelled = spec_with(method=plain.method.model_dump())
    assert keys_of(spelled) == keys_of(plain)
    method = plain.method_of(plain.tasks[0], density=0.5)
    same = plain.method_of(plain.tasks[1], density=0.5)
    assert trial_key(plain, plain.tasks[0], method, "d") == trial_key(
        plain, plain.tasks[0], same, "d"
    )
    assert trial_key(plain, plain.tasks[0], method, "d") != trial_key(
        plain, plain.tasks[1], method, "d"
    )


# --------------------------------------------------------------------------- rounds

DRAWN = {"penalty_lr": {"log_uniform": [0.01, 1]}}
TWO = {"near": {}, "far": {"penalty_lr": {"log_uniform": [0.8, 1]}, "distill": 0.2}}
TUNED = search(density=[0.5, 0.3, 0.1], trials_per_density=3, tune_at=0.3, repeats=2) | DRAWN


def test_keys_and_draws_are_those_of_earlier_versions():
    """Of dense references that took hours, and of campaigns whose tables are published."""
    spec = spec_with()
    dense = [dense_key(spec, task, "data") for task in spec.tasks]
    assert dense == ["e3edf7fbfea69d6b", "4a347174f8800042"]
    assert [plan.name for plan in plans(spec)[:3]] == [
        "density=0.5 calibration_batches=160 penalty_lr=0.00203",
        "density=0.3 calibration_batches=246 penalty_lr=0.6274",
        "density=0.5 calibration_batches=335 penalty_lr=0.01923",
    ]


def test_without_methods_there_is_one_called_by_its_kind():
    tasks = [TASK, TASK | {"name": "other", "method": {"kind": "flop-l0"}}]
    spec = spec_with(method={"kind": "adaptive"}, tasks=tasks, search=search())
    assert [p.method_name for task in (0, 1) for p in plans(spec, task)] == ["adaptive", "flop-l0"]


def test_repeats_follow_the_best_draw_of_each_density():
    spec = spec_with(search=SPEC["search"] | {"repeats": 3})
    ran = run(spec)
    draws, repeats = ran.rounds
    assert [plan.key for plan in draws] == [plan.key for plan in plans(spec_with())]
    assert {(plan.seed, plan.repeat) for plan in draws} == {(7, 0)}
    for density in (0.5, 0.3):
        best = min((p for p in draws if p.method.density == density), key=quality)
        again = [p for p in repeats if p.method.density == density]
        assert [(p.seed, p.repeat, p.searched) for p in again] == [
            (8, 1, best.searched),
            (9, 2, best.searched),
        ]
        assert [p.name for p in again] == [f"{best.name} seed=8", f"{best.name} seed=9"]
        assert len({best.key, *(p.key for p in again)}) == 3
    higher = plans(spec, finished=dict.fromkeys([p.key for p in draws], 1.0), higher_is_better=True)
    assert higher[8].searched == draws[0].searched, "the first of equals"
    worst = max((p for p in draws if p.method.density == 0.5), key=quality)
    higher = plans(spec, finished={p.key: quality(p) for p in draws}, higher_is_better=True)
    assert higher[8].searched == worst.searched


def test_a_density_does_not_wait_for_the_others():
    spec = spec_with(search=SPEC["search"] | {"repeats": 2})
    draws = plans(spec)
    finished = {p.key: quality(p) for p in draws if p.method.density == 0.3}
    (more,) = plans(spec, finished=finished)[8:]
    assert more.method.density == 0.3
    finished.popitem()
    assert plans(spec, finished=finished) == draws


def test_the_winner_of_one_density_goes_to_all():
    ran = run(spec_with(search=TUNED))
    draws, rest = ran.rounds
    assert [plan.method.density for plan in draws] == [0.3] * 3
    best = min(draws, key=quality)
    assert [(p.method.density, p.repeat) for p in rest] == [
        (0.5, 0), (0.5, 1), (0.3, 1), (0.1, 0), (0.1, 1),
    ]  # fmt: skip
    assert {p.method.penalty_lr for p in rest} == {best.method.penalty_lr}
    assert len({p.name for p in ran.plans}) == len(ran.plans)


def test_only_some_densities_may_be_repeated():
    everywhere = run(spec_with(search=TUNED | {"repeats": 3}))
    ran = run(spec_with(search=TUNED | {"repeats": 3, "repeats_at": [0.3]}))
    _, rest = ran.rounds
    assert [(p.method.density, p.repeat) for p in rest] == [(0.5, 0), (0.3, 1), (0.3, 2), (0.1, 0)]
    # the same trials, only fewer: a campaign that is extended keeps what it has
    assert {p.key for p in ran.plans} < {p.key for p in everywhere.plans}
    untuned = search(density=[0.5, 0.3], repeats=2, repeats_at=[0.5], methods={"a": {}})
    assert [p.method.density for p in run(spec_with(search=untuned)).rounds[1]] == [0.5]


def test_each_method_draws_for_itself_under_its_own_name():
    spec = spec_with(search=search(trials_per_density=2, methods=TWO) | DRAWN)
    near, far = plans(spec)[:2], plans(spec)[2:]
    assert {p.method_name for p in near} == {"near"}
    assert all(p.name.startswith("far density=0.5 penalty_lr=") for p in far)
    assert all(p.method.penalty_lr >= 0.8 and p.method.distill == 0.2 for p in far)
    assert all("distill" not in p.searched for p in far)
    # another method beside it changes nothing
    alone = spec_with(search=search(trials_per_density=2, methods={"far": TWO["far"]}))
    assert plans(alone) == far


def test_equal_methods_with_different_names_are_two():
    found = plans(spec_with(search=search(methods={"a": {}, "b": {}})))
    assert found[0].method == found[1].method
    assert found[0].key != found[1].key


def test_a_method_may_have_its_own_number_of_draws_and_repeats():
    methods = {"a": {}, "b": {"trials_per_density": 4, "repeats": 1}, "c": {"repeats": 5}}
    values = search(trials_per_density=2, repeats=2, methods=methods) | DRAWN
    ran = run(spec_with(search=values))
    for round_, numbers in zip(ran.rounds, ([2, 4, 2], [1, 0, 4]), strict=True):
        counted = Counter(plan.method_name for plan in round_)
        assert [counted[name] for name in "abc"] == numbers


def test_a_field_of_the_search_is_for_the_kinds_that_have_it():
    methods = {"gates": {}, "ranks": {"kind": "low-rank", "finetune_learning_rate": [1e-3, 2e-3]}}
    found = plans(spec_with(search=search(methods=methods) | DRAWN))
    assert [sorted(plan.searched) for plan in found] == [
        ["density", "penalty_lr"],
        ["density", "finetune_learning_rate"],
    ]


def test_failed_draws_leave_the_choice_to_the_others():
    best = min(plans(spec_with(search=TUNED)), key=quality)
    ran = run(spec_with(search=TUNED), lambda plan: plan.key == best.key)
    second = sorted(ran.rounds[0], key=quality)[1]
    assert {p.method.penalty_lr for p in ran.rounds[1]} == {second.method.penalty_lr}


def test_without_a_winner_there_are_no_repeats_and_other_methods_go_on():
    spec = spec_with(search=TUNED | {"methods": TWO})
    ran = run(spec, lambda plan: plan.method_name == "near")
    assert Counter(p.method_name for p in ran.plans) == {"near": 3, "far": 8}


def test_a_draw_without_a_figure_never_wins():
    spec = spec_with(search=TUNED)
    draws = plans(spec)
    finished = {draws[0].key: math.nan, draws[1].key: 5.0, draws[2].key: math.inf}
    assert plans(spec, finished=finished)[3].searched["penalty_lr"] == draws[1].method.penalty_lr
    assert plans(spec, finished={plan.key: math.nan for plan in draws}) == draws


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (search(), 1),
        (search(trials_per_density=5), 1),
        (SPEC["search"], 8),
        (SPEC["search"] | {"repeats": 3}, 12),
        (TUNED, 8),
        (TUNED | {"methods": TWO}, 16),
    ],
)
def test_all_rounds_are_expected_from_the_start(values: dict[str, Any], expected: int):
    spec = spec_with(search=values)
    assert expected_trials(spec, spec.tasks[0]) == expected
    assert len(run(spec).plans) == expected


@settings(deadline=None, max_examples=30)
@given(draw=st.data())
def test_from_any_state_the_same_trials_come_out(draw: st.DataObject):
    """Interrupted anywhere, with trials that failed once and then did not."""
    spec = spec_with(
        search=TUNED | {"methods": TWO, "tune_at": draw.draw(st.sampled_from([None, 0.3]))}
    )
    whole = run(spec)
    keys = [plan.key for plan in whole.plans]
    done = {key: whole.finished[key] for key in draw.draw(st.sets(st.sampled_from(keys)))}
    while True:
        found = plans(spec, finished=done)
        assert {plan.key for plan in found} <= set(keys)
        new = [plan for plan in found if plan.key not in done]
        if not new:
            break
        for plan in draw.draw(st.lists(st.sampled_from(new), min_size=1)):
            done[plan.key] = whole.finished[plan.key]
    assert sorted(plan.key for plan in found) == sorted(keys)


def test_a_draw_that_missed_its_size_is_not_the_best_whatever_its_quality():
    spec = spec_with(search=SPEC["search"] | {"repeats": 2})
    draws = plans(spec)
    finished = {p.key: quality(p) for p in draws}
    half = sorted((p for p in draws if p.method.density == 0.5), key=quality)
    # the better a draw, the further it is from its size
    excess = {plan.key: 0.1 / (place + 1) for place, plan in enumerate(half)}
    chosen = [p for p in plans(spec, finished=finished, excess=excess) if p.repeat]
    assert {p.method.density: p.searched for p in chosen}[0.5] == half[-1].searched
    met = excess | {half[1].key: 0.0}
    chosen = [p for p in plans(spec, finished=finished, excess=met) if p.repeat]
    assert {p.method.density: p.searched for p in chosen}[0.5] == half[1].searched


# --------------------------------------------------------------------------- finalists


def settings_of(found: list[TrialPlan]) -> dict[tuple[str, Any, float], int]:
    return dict(Counter((p.method_name, p.method.penalty_lr, p.method.density) for p in found))


def test_what_is_on_the_front_at_the_end_is_run_again():
    spec = spec_with(search=SPEC["search"] | {"repeats": 2, "finalists": 4})
    ran = run(spec)
    draws, repeats, further = ran.rounds
    assert (len(draws), len(repeats)) == (8, 2)
    # by mean quality the smaller density may be as good: then the larger is not on the front
    counts = settings_of(ran.plans)
    best = {d: min((p for p in draws if p.method.density == d), key=quality) for d in (0.5, 0.3)}
    on_front = [0.3] if quality(best[0.3]) <= quality(best[0.5]) else [0.3, 0.5]
    for density, plan in best.items():
        key = (plan.method_name, plan.method.penalty_lr, density)
        assert counts[key] == (4 if density in on_front else 2)
    assert {(p.repeat, p.seed) for p in further} == {(2, 9), (3, 10)}
    # the same keys as more repeats would have
    more = run(spec_with(search=SPEC["search"] | {"repeats": 4}))
    assert {p.key for p in ran.plans} <= {p.key for p in more.plans}


def test_further_runs_do_not_change_who_is_a_finalist():
    spec = spec_with(search=SPEC["search"] | {"finalists": 3})
    draws = plans(spec)
    finished = {p.key: 1 - p.method.density + place / 100 for place, p in enumerate(draws)}
    finalists = plans(spec, finished=finished)[len(draws) :]
    assert len(finalists) == 4
    # as bad as can be: the mean of their settings is now off the front
    bad = finished | {p.key: 100.0 for p in finalists}
    assert plans(spec, finished=bad) == [*draws, *finalists]


def test_there_are_no_finalists_while_a_trial_is_to_come():
    spec = spec_with(search=SPEC["search"] | {"finalists": 3})
    draws = plans(spec)
    finished = {p.key: quality(p) for p in draws[1:]}
    assert plans(spec, finished=finished) == draws
    assert len(plans(spec, finished=finished, failed=[draws[0].key])) > len(draws)
    assert plans(spec, failed=[p.key for p in draws]) == draws
    assert plans(spec, finished={p.key: math.nan for p in draws}) == draws


def test_what_missed_its_size_is_judged_by_the_size_it_has():
    spec = spec_with(search=search(density=[0.5, 0.3], finalists=2))
    large, small = plans(spec)
    finished = {large.key: 1.0, small.key: 2.0}
    assert len(plans(spec, finished=finished)) == 4
    found = plans(spec, finished=finished, excess={small.key: 0.25})
    assert [p.method.density for p in found[2:]] == [0.5]


def test_as_many_finalists_are_expected_as_there_are_densities():
    spec = spec_with(search=TUNED | {"methods": TWO, "finalists": 5})
    without = spec_with(search=TUNED | {"methods": TWO})
    # of three densities one setting each, which has two runs already
    assert expected_trials(spec, spec.tasks[0]) == expected_trials(without, without.tasks[0]) + 9


def test_what_came_later_is_part_of_a_hash_only_if_it_is_used(monkeypatch: pytest.MonkeyPatch):
    hashed: list[dict[str, Any]] = []
    monkeypatch.setattr("orchestrator.spec.content_hash", lambda values: hashed.append(values))
    explicit = {"finalists": None}
    spec_with(search=SPEC["search"] | explicit, select={"epsilon": 0}).digest()
    used = {"epsilon": 0.01, "reference_drop": 0.2}
    spec_with(search=SPEC["search"] | {"finalists": 3}, select=used).digest()
    before, after = hashed
    assert set(before["select"]) == {"require", "then"}
    assert "finalists" not in before["search"]
    assert after["select"] | used == after["select"]
    assert after["search"]["finalists"] == 3
