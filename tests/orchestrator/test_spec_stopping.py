"""`search.stopping`: how it is written, what it refuses, and that it changes no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.search import plan_trials
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec, load_spec
from orchestrator.spec_stopping import StoppingSpec, milestone
from tests.orchestrator.spec_texts import VALID, write_spec

MORE = VALID.replace("gate_lr", "finetune_learning_rate") + "  trials_per_density: 3\n"
EVERY = ("tasks.docs-lm.evaluate_every=50", "tasks.sst.evaluate_every=50")
METHOD = "method={kind: adaptive, steps: 400}"


def load(folder: Path, text: str = MORE, *overrides: str) -> CampaignSpec:
    return load_spec(write_spec(folder, text), (METHOD, *EVERY, *overrides))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("null", None),
        ("{}", StoppingSpec(rungs=[0.5, 0.75], keep=0.5, at_least=4)),
        (
            "{rungs: [0.25, 0.5], keep: 0.25, at_least: 2}",
            StoppingSpec(rungs=[0.25, 0.5], keep=0.25, at_least=2),
        ),
    ],
)
def test_ways_to_write_it(tmp_path: Path, written: str, read: StoppingSpec | None):
    spec = load(tmp_path, MORE + f"  stopping: {written}\n")
    assert spec.search.stopping == read
    again = load_spec(write_spec(tmp_path, dump_spec(spec), "again.yaml"))
    assert again.search == spec.search
    # a spec without one is the spec that it was
    assert (spec.digest() == load(tmp_path).digest()) == (read is None)


def test_keys_stay_those_of_a_spec_without_it(tmp_path: Path):
    without, with_it = load(tmp_path), load(tmp_path, MORE, "search.stopping={}")
    plans = [
        [plan.key for plan in plan_trials(spec, spec.tasks[0], "data")]
        for spec in (without, with_it)
    ]
    assert plans[0]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.stopping={rungs: []}"], "search.stopping.rungs: "),
        (["search.stopping={rungs: [0.6, 0.4]}"], "rungs must ascend, got [0.6, 0.4]"),
        (["search.stopping={rungs: [0.4, 0.4]}"], "rungs must ascend, got [0.4, 0.4]"),
        (["search.stopping={rungs: [0.4, 1.0]}"], "search.stopping.rungs[1]: "),
        (["search.stopping={rungs: [0]}"], "search.stopping.rungs[0]: "),
        (
            ["search.stopping={rungs: [true]}"],
            "search.stopping.rungs[0]: must be > 0 and < 1, got True",
        ),
        (["search.stopping={keep: 0}"], "search.stopping.keep: "),
        (["search.stopping={keep: 1}"], "search.stopping.keep: "),
        (["search.stopping={at_least: 1}"], "search.stopping.at_least: "),
        (["search.stopping={rung: [0.4]}"], "search.stopping.rung: "),
        (["search.stopping=true"], "search.stopping: must be a block of keys and values, got True"),
        (
            ["search.stopping={}", "search.sampler=gp"],
            "search.stopping: leaves a sampler that learns without the quality of what was "
            "stopped: search.sampler must not be given, got gp",
        ),
        (
            ["search.stopping={}", "search.ladder=true"],
            "search.stopping: cannot stop a model that others branch off or go on from",
        ),
        (
            ["search.stopping={}", "search.trials_per_density=1"],
            "trials_per_density must be at least 2, got 1",
        ),
        (
            ["search.stopping={at_least: 7}"],
            "search.stopping.at_least: must be at most the 6 draws of a task, or nobody is "
            "stopped, got 7",
        ),
        (
            ["search.stopping={}", "method={kind: adaptive, gated_fraction: 0.9, steps: 400}"],
            "search.stopping.rungs: one rung at least must come after the gates have closed "
            "(adaptive at step 360), got [0.5, 0.75]",
        ),
        (
            ["search.stopping={}", "method.steps=100"],
            "adaptive has no validation between step 50 (rung 0.5) and step 75 that is the second "
            "or a later one since its structure is fixed (step 40): evaluate_every must be "
            "smaller, got 50, or the rungs fewer",
        ),
        (
            ["search.stopping={rungs: [0.95]}", "method.steps=200"],
            "no validation between step 190 (rung 0.95) and step 200",
        ),
        (
            # there is one at step 160, but its pace is known by the next one only
            ["search.stopping={rungs: [0.4, 0.6]}", "tasks.docs-lm.evaluate_every=48"],
            "between step 160 (rung 0.4) and step 240 that is the second or a later one since",
        ),
    ],
)
def test_what_it_refuses(tmp_path: Path, overrides: list[str], message: str):
    with pytest.raises(SpecError) as refused:
        load(tmp_path, MORE, *overrides)
    assert message in str(refused.value), str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method={kind: adaptive, gated_fraction: 0.45, steps: 400}"],
        # one of two methods is judged; of the other's steps nothing is known
        ["search.methods={a: {kind: adaptive}, b: {kind: faithful}}"],
        ["search.gated_fraction={uniform: [0.1, 0.9]}", "method.steps=60"],
        # its training is longer, by the dense steps, and has no gates
        ["search.methods={a: {kind: from-scratch, steps: 100}}", "tasks.sst.dense.steps=600"],
    ],
)
def test_what_it_goes_together_with(tmp_path: Path, overrides: list[str]):
    assert load(tmp_path, MORE, "search.stopping={}", *overrides).search.stopping


@pytest.mark.parametrize(
    ("rung", "total", "step"), [(0.7, 10, 7), (0.4, 100, 40), (0.41, 10, 5), (0.001, 10, 1)]
)
def test_the_step_of_a_rung(rung: float, total: int, step: int):
    assert milestone(rung, total) == step
