"""Which trials a spec asks for, and what makes two of them the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search import TrialPlan, dense_key, plan_trials, trial_key
from orchestrator.spec import CampaignSpec
from tests.orchestrator.small import GPT2

TASK = {
    "name": "lm",
    "kind": "language-modelling",
    "data": {"source": "python-docs"},
    "model": GPT2,
    "dense": {"steps": 10, "learning_rate": 1e-3},
}
SPEC: dict[str, Any] = {
    "name": "search",
    "seed": 7,
    "tasks": [TASK, TASK | {"name": "other"}],
    "search": {
        "density": [0.5, 0.3],
        "trials_per_density": 4,
        "penalty_lr": {"log_uniform": [0.001, 1]},
        "anneal_steps": {"uniform": [10, 400]},
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
    return CampaignSpec.model_validate(SPEC | changes)


def search(**fields: Any) -> dict[str, Any]:
    return {"density": [0.5]} | fields


def plans(spec: CampaignSpec, task: int = 0, data: str = "data") -> list[TrialPlan]:
    return plan_trials(spec, spec.tasks[task], data)


def test_every_density_gets_its_trials():
    found = plans(spec_with())
    assert Counter(plan.method.density for plan in found) == {0.5: 4, 0.3: 4}
    assert len({plan.key for plan in found}) == 8
    assert len({plan.name for plan in found}) == 8
    for plan in found:
        assert 0.001 <= plan.method.penalty_lr <= 1
        assert plan.searched == {
            name: getattr(plan.method, name) for name in ("density", "penalty_lr", "anneal_steps")
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
        steps = plan.searched["anneal_steps"]
        assert type(steps) is int
        assert f"anneal_steps={steps}" in plan.name.split()


def test_listed_values_stay_as_written():
    listed = search(density=[0.1234567, 0.1234568], penalty_lr=[0.987654321], hold_steps=[5.0])
    found = plans(spec_with(search=listed))
    assert [plan.method.density for plan in found] == [0.1234567, 0.1234568]
    assert {plan.method.penalty_lr for plan in found} == {0.987654321}
    assert {repr(plan.searched["hold_steps"]) for plan in found} == {"5"}
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
        ({"method": {"finetune_steps": 7}}, False),
        ({"method": {"distill": 0.123}}, False),
        ({"tasks": [TASK | {"method": {"hold_steps": 1}}]}, False),
    ],
)
def test_what_decides_a_result_is_in_the_key(changes: dict[str, Any], dense_too: bool):
    dense, trial = keys_of(spec_with())
    dense_now, trial_now = keys_of(spec_with(**changes))
    assert trial_now != trial
    assert (dense_now != dense) == dense_too


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
