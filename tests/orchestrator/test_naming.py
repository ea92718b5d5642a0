"""Names hold what tells the trials of a task apart, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.campaign_records import FailedTrial
from orchestrator.naming import TrialNames
from orchestrator.records import ModelRecord
from tests.orchestrator.record_factory import make_key, make_trial


def trial(method: str = "adaptive", seed: int = 7, **config: object) -> ModelRecord:
    base = make_trial(method_name=method, seed=seed, key=make_key(method, seed, config))
    return replace(base, config=base.config | {"penalty_lr": None, "block": 16} | config)


def test_one_method_is_named_by_what_campaigns_usually_search():
    trials = [make_trial(0.3, 0.1), make_trial(0.5, 0.1)]
    names = TrialNames.of(trials)
    assert names.full(trials[0]) == "density 0.3, penalty_lr 0.1"
    assert names.without_density(trials[0]) == "penalty_lr 0.1"
    assert names.brief(trials[0]) == "0.3 / 0.1"
    assert names.differences(trials[0]) == ""


def test_what_was_searched_stands_in_the_name_and_defaults_do_not():
    trials = [trial(distill=0.5), trial(distill=0.0)]
    names = TrialNames.of(trials)
    assert [names.full(each) for each in trials] == [
        "density 0.3, distill 0.5", "density 0.3, distill 0",
    ]  # fmt: skip
    assert names.without_density(trials[0]) == "trial"
    assert names.differences(trials[0]) == "distill 0.5"


def test_several_methods_and_seeds_stand_in_the_name():
    tuned = [trial("gates", penalty_lr=0.1), trial("gates", penalty_lr=0.2, seed=8)]
    plain = trial("ranks", distill=0.9)
    names = TrialNames.of([*tuned, plain])
    assert names.full(tuned[1]) == "gates, density 0.3, penalty_lr 0.2, seed 8"
    assert names.full(plain) == "ranks, density 0.3, seed 7"
    assert names.without_density(tuned[1]) == "gates, seed 8"
    assert names.searched_in_words(tuned[1]) == "penalty_lr 0.2"
    assert names.brief(tuned[1]) == "gates / 0.3 / 0.2 / 8"


def test_bare_records_and_failures_of_earlier_versions_have_names():
    failed = FailedTrial(key="k" * 16, task="lm", config={"density": 0.1}, reason="r")
    bare = replace(make_trial(), config={})
    names = TrialNames.of([failed, bare])
    assert (names.full(failed), names.full(bare)) == ("density 0.1", "trial")
    assert names.brief(bare) == bare.key[:8]
