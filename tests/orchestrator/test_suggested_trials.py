"""Trials that a sampler suggests: in batches, each once, and the same when a campaign goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.draws import Draws
from orchestrator.errors import StorageError
from orchestrator.method_search import TrialPlan
from orchestrator.search import expected_trials, plan_trials
from orchestrator.spec import CampaignSpec
from tests.orchestrator.small import docs_task

SEARCH = {
    "density": [0.5, 0.25],
    "trials_per_density": 3,
    "sampler": "gp",
    "startup": 2,
    "batch": 2,
    "finetune_learning_rate": {"log_uniform": [1e-4, 1e-2]},
}


def spec_with(**search: Any) -> CampaignSpec:
    tasks = [docs_task("lm", steps=10)]
    return CampaignSpec.model_validate({"name": "c", "tasks": tasks, "search": SEARCH | search})


def quality(plan: TrialPlan) -> float:
    return 2.0 + plan.method.finetune_learning_rate - 0.1 * plan.method.density


def plans_of(
    spec: CampaignSpec, ended: Sequence[TrialPlan] = (), draws: Draws | None = None, **more: Any
) -> list[TrialPlan]:
    finished = {plan.key: quality(plan) for plan in ended}
    return plan_trials(spec, spec.tasks[0], "d", finished, draws=draws, **more)


def to_the_end(spec: CampaignSpec, draws: Draws) -> list[int]:
    """How many trials are known after each round."""
    sizes, ended = [], list[TrialPlan]()
    while len(plans := plans_of(spec, ended, draws)) > len(ended):
        sizes.append(len(plans))
        ended = plans
    return sizes


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The draws of a campaign that has ended."""
    path = tmp_path_factory.mktemp("draws") / "draws.json"
    assert to_the_end(spec_with(), Draws(path)) == [2, 4, 6]
    return path


def test_batches_come_when_all_before_have_ended(kept: Path):
    spec, draws = spec_with(), Draws(kept)
    first = plans_of(spec, draws=draws)
    assert [plan.method.density for plan in first] == [0.5, 0.25], "all densities in turn"
    assert plans_of(spec, first[:1], draws) == first
    second = plans_of(spec, first, draws)
    assert (second[:2], len(second)) == (first, 4)
    assert len({plan.key for plan in second}) == 4
    assert all(1e-4 <= plan.method.finetune_learning_rate <= 1e-2 for plan in second)
    # a trial without a model does not hold up the others
    failed = plans_of(spec, first[:1], draws, failed={first[1].key})
    assert failed[:2] == first
    assert len(failed) == 4


def test_a_campaign_that_goes_on_has_the_trials_that_it_had(kept: Path):
    spec = spec_with()
    ended = plans_of(spec, plans_of(spec), Draws(kept))
    # one of them was trained again since, and came to something else
    other = {plan.key: quality(plan) + (plan is ended[0]) for plan in ended}
    again = plan_trials(spec, spec.tasks[0], "d", other, draws=Draws(kept))
    assert again == plans_of(spec, ended, Draws(kept))
    assert len(again) == 6


def test_without_the_file_the_same_machine_suggests_the_same(kept: Path):
    spec = spec_with()
    first = plans_of(spec)
    assert plans_of(spec, first) == plans_of(spec, first, Draws(kept))
    assert (
        plans_of(spec_with(), first)[2:]
        != plans_of(
            spec_with(batch=2, startup=2, finetune_learning_rate={"log_uniform": [1e-4, 2e-2]}),
            first,
        )[2:]
    )


def test_repeats_follow_when_all_draws_are_there(kept: Path):
    spec, draws = spec_with(repeats=2), Draws(kept)
    ended = list[TrialPlan]()
    for _ in range(3):
        ended = plans_of(spec, ended, draws)
        assert all(plan.repeat == 0 for plan in ended)
    plans = plans_of(spec, ended, draws)
    repeats = [plan for plan in plans if plan.repeat]
    assert sorted(plan.method.density for plan in repeats) == [0.25, 0.5]
    for plan in repeats:
        drawn = [other for other in ended if other.method.density == plan.method.density]
        assert plan.searched == min(drawn, key=quality).searched
    assert expected_trials(spec, spec.tasks[0]) == len(plans) == 8


def test_a_method_with_nothing_to_search_has_its_densities():
    spec = spec_with(finetune_learning_rate=[1e-3], trials_per_density=1)
    assert to_the_end(spec, Draws()) == [2]
    values = {k: v for k, v in SEARCH.items() if k != "finetune_learning_rate"}
    task = docs_task("lm", steps=10)
    bare = CampaignSpec.model_validate({"name": "c", "tasks": [task], "search": values})
    assert len(plans_of(bare)) == 2


def test_a_short_list_is_exhausted():
    """Six trials are asked for, and two densities with two rates are four."""
    values = {"finetune_learning_rate": [1e-3, 1e-4]}
    sizes = to_the_end(spec_with(**values), draws := Draws())
    assert sizes[0] == 2
    assert sizes[-1] <= 4
    # and then comes what follows from draws that are all there
    assert to_the_end(spec_with(**values, repeats=2), draws)[-1] == sizes[-1] + 2


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"tune_at": 0.5}, "tune_at: has no meaning with sampler 'gp'"),
        ({"ladder": True}, "ladder: has no meaning with sampler 'gp'"),
        ({"sampler": "tpe"}, "sampler"),
        ({"batch": 0}, "batch"),
        ({"startup": 1}, "startup"),
    ],
)
def test_what_does_not_go_together_is_refused(search: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message.split(":")[0]) as caught:
        spec_with(**search)
    assert message.split(": ")[-1] in str(caught.value)


def test_a_spec_without_a_sampler_keeps_its_digest():
    spec = spec_with(sampler="random")
    assert spec.digest() == spec_with(sampler="random", startup=5, batch=9).digest()
    assert spec.digest() != spec_with().digest()


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": [1]}'])
def test_a_damaged_file_is_told_of(tmp_path: Path, text: str):
    path = tmp_path / "draws.json"
    path.write_text(text)
    with pytest.raises(StorageError, match=r"draws\.json cannot be read: .*suggests anew"):
        Draws(path)


def test_what_cannot_be_kept_is_not_used(tmp_path: Path):
    """A trial that ran and was forgotten would be lost to the campaign."""
    draws = Draws(tmp_path / "away" / "draws.json")
    with pytest.raises(StorageError, match="cannot write"):
        draws.batch("key", lambda: [{"a": 1}])


def test_batches_survive(tmp_path: Path):
    path = tmp_path / "draws.json"
    assert Draws(path).batch("key", lambda: [{"rate": 0.1}]) == [{"rate": 0.1}]
    assert Draws(path).batch("key", lambda: pytest.fail("asked again")) == [{"rate": 0.1}]
    assert json.loads(path.read_text()) == {"key": [{"rate": 0.1}]}
