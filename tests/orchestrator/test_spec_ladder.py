"""`search.ladder`: how it is written, what it refuses, and which trials and keys come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.ladder import plan_steps
from orchestrator.method_search import TrialPlan
from orchestrator.search import expected_trials, plan_trials
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec, load_spec
from orchestrator.spec_ladder import LadderSpec
from orchestrator.spec_method import MethodSpec
from tests.orchestrator.spec_texts import VALID, write_spec

LADDER = VALID + "  ladder: true\n"
TRUNK = VALID + "  ladder: {by: trunk}\n"
TRUNK_KEYS = ["4d2a3cd46e0375e2", "983723507b464672"]
"""Of its models at contracts 1, 3 and 1."""


def load(folder: Path, text: str = LADDER, *overrides: str) -> CampaignSpec:
    return load_spec(write_spec(folder, text), overrides)


def plans(spec: CampaignSpec, **known: Any) -> list[TrialPlan]:
    return plan_trials(spec, spec.tasks[0], "data", **known)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("true", LadderSpec()),
        ("{}", LadderSpec()),
        ("{by: trunk, recovery: 0.4}", LadderSpec(by="trunk", recovery=0.4)),
        ("{by: chain}", LadderSpec()),
        ("{by: trunk, run: apart}", LadderSpec(by="trunk", run="apart")),
        ("false", None),
        ("null", None),
    ],
)
def test_ways_to_write_it(tmp_path: Path, written: str, read: LadderSpec | None):
    spec = load(tmp_path, VALID + f"  ladder: {written}\n")
    assert spec.search.ladder == read
    again = load_spec(write_spec(tmp_path, dump_spec(spec), "again.yaml"))
    assert again.search == spec.search
    assert load(tmp_path, VALID, f"search.ladder={written}").search == spec.search
    # a spec without one is the spec that it was
    assert (spec.digest() == load(tmp_path, VALID).digest()) == (read is None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.density=[0.3]", "search.ladder: needs two or more values in search.density, got"),
        (
            "search.tune_at=0.3",
            "search.tune_at: a ladder goes through all of search.density as a whole, got 0.3",
        ),
        (
            "search.repeats_at=[0.3]",
            "search.repeats_at: a ladder goes through all of search.density as a whole, got [0.3]",
        ),
        (
            "method.gated_fraction=0.2",
            "search.ladder: divides the steps itself, so that method.gated_fraction has no "
            "meaning, got 0.2",
        ),
        ("search.ladder=3", "search.ladder: must be a block of keys and values, got 3"),
        (
            "search.ladder={by: trunk, recovery: 0}",
            "search.ladder.recovery: must be > 0 and <= 100, got 0",
        ),
        ("search.ladder.recovery=true", "search.ladder.recovery: must not be true or false"),
        ("search.ladder.recovry=1", "search.ladder.recovry: unknown key; did you mean `recovery`?"),
        (
            "search.ladder={run: apart}",
            "search.ladder.run: must be together in a chain, where each model waits for another, "
            "got apart: branches of a trunk (by: trunk) can be",
        ),
        (
            "search.ladder={recovery: 0.3}",
            "search.ladder.recovery: is that of a trunk's branches (by: trunk): a chain takes "
            "descent alone, got 0.3",
        ),
    ],
)
def test_what_it_refuses(tmp_path: Path, override: str, message: str):
    text = VALID + "  ladder: {}\n" if "ladder." in override else LADDER
    text = TRUNK if "gated_fraction" in override else text
    with pytest.raises(SpecError) as error:
        load(tmp_path, text, override)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            "method: {kind: flop-l0}\n",
            "search.ladder: needs kind 'adaptive', whose gates meet each density on their way, "
            "got 'flop-l0'",
        ),
        (
            "  methods: {a: {}, b: {kind: low-rank}}\n",
            "search.ladder: needs kind 'adaptive', whose gates meet each density on their way, "
            "got 'low-rank'",
        ),
    ],
)
def test_methods_that_it_refuses(tmp_path: Path, block: str, message: str):
    with pytest.raises(SpecError) as error:
        load(tmp_path, LADDER + block)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("block", "rungs", "branch"),
    [
        # to halve a density takes as many steps anywhere
        ({"by": "trunk"}, [50, 65, 80], 25),
        ({"by": "trunk", "first": 0.3, "descent": 0.5, "recovery": 0.1}, [30, 80, 130], 10),
        ({}, [100, 150, 175], 0),
        ({"first": 0.5, "descent": 0.75}, [50, 150, 200], 0),
    ],
)
def test_steps_of_a_ladder(block: dict[str, Any], rungs: list[int], branch: int):
    method = MethodSpec(kind="adaptive", steps=100)
    assert plan_steps(LadderSpec(**block), method, [0.4, 0.2, 0.1]) == (rungs, branch)


def test_a_chain_reads_the_gated_fraction(tmp_path: Path):
    """Its first model is one of a training of its own."""
    spec = load(tmp_path, LADDER, "method.gated_fraction=0.2")
    assert spec.method_of(spec.tasks[0]).gated_fraction == 0.2


def test_one_draw_is_one_ladder(tmp_path: Path):
    spec = load(tmp_path, LADDER, "search.trials_per_density=2", "search.density=[0.1,0.5,0.3]")
    found = plans(spec)
    assert [plan.method.density for plan in found] == [0.5, 0.3, 0.1] * 2
    trunks = [plan.trunk for plan in found]
    assert trunks == [trunks[0]] * 3 + [trunks[3]] * 3
    assert len(set(trunks)) == 2
    # the values of a draw are those of the whole ladder
    assert len({plan.method.gate_lr for plan in found[:3]}) == 1
    assert len({plan.key for plan in found}) == 6
    assert expected_trials(spec, spec.tasks[0]) == 6


def test_keys_are_of_what_decides(tmp_path: Path):
    def keys(*overrides: str, text: str = TRUNK) -> list[str]:
        return [plan.key for plan in plans(load(tmp_path, text, *overrides))]

    whole = keys()
    assert keys("search.density=[0.3,0.5]") == whole
    assert keys("search.ladder={by: trunk, run: apart}") == whole
    assert keys("search.ladder={by: trunk, first: 0.5, descent: 0.15, recovery: 0.25}") == whole
    # as they were when each field had its default written down: finished trunks stay
    assert whole == TRUNK_KEYS
    chain = keys(text=LADDER)
    assert keys("search.ladder={by: chain, first: 1, descent: 0.375}") == chain
    for other in (
        "search.ladder={by: trunk, recovery: 0.3}",
        "search.ladder={by: chain}",
        "search.density=[0.5,0.3,0.1]",
        "method.steps=900",
        "seed=8",
    ):
        assert not set(keys(other)) & set(whole)
    assert not set(keys(text=VALID)) & set(whole)


def test_repeats_and_finalists_are_whole_ladders(tmp_path: Path):
    spec = load(tmp_path, LADDER, "search.trials_per_density=2", "search.repeats=2")
    draws = plans(spec)
    # at 0.5 the first is better, at 0.3 the second
    quality = dict(zip([plan.key for plan in draws], [1.0, 2.0, 1.5, 1.8], strict=True))
    both = plans(spec, finished=quality)
    assert [(p.seed, p.method.density) for p in both[4:]] == [(8, 0.5), (8, 0.3)] * 2
    assert {p.trunk for p in both[4:6]} != {p.trunk for p in both[6:]}
    spec = load(tmp_path, LADDER, "search.finalists=3")
    draws = plans(spec)
    # the smaller model is the better one too: it alone is on the front, and its ladder runs again
    quality = {draws[0].key: 2.0, draws[1].key: 1.0}
    runs = plans(spec, finished=quality)
    assert [(p.seed, p.method.density) for p in runs[2:]] == [
        (8, 0.5),
        (8, 0.3),
        (9, 0.5),
        (9, 0.3),
    ]
    assert expected_trials(spec, spec.tasks[0]) == 6
