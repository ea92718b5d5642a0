"""A pruner that goes through several densities, and is copied at each."""

from __future__ import annotations

import copy

import pytest
import torch

from lowrank import Adaptive, DensityError, FlopL0, LowRankError, Pruner
from lowrank.methods.course import TEMPERATURES
from lowrank.nested import compacted_copy
from tests.lowrank.test_threshold_control import UNEVEN, Branches, Run

DENSITIES = (0.6, 0.4, 0.2)
STEPS = 12


def descent(**fields):
    """At every density in turn, before and after its steps."""
    run = Run(weights=UNEVEN, density=DENSITIES[0], gated_steps=STEPS, **fields)
    reached = None
    for density in DENSITIES:
        run.pruner.aim(density, STEPS, reached)
        yield run, density, reached
        run.until(STEPS)
        reached = density


def test_the_density_is_that_of_the_schedule_all_the_way():
    for run, density, reached in descent():
        begin = run.pruner.target
        assert begin == pytest.approx(reached or float(run.pruner.expected_density()), abs=1e-6)
        seen = []
        while run.pruner.step_index < STEPS:
            assert float(run.pruner.expected_density()) == pytest.approx(
                run.pruner.target, abs=1e-5
            )
            seen.append(run.pruner.target)
            run.until(run.pruner.step_index + 1)
        assert seen == sorted(seen, reverse=True)
        assert run.pruner.target == pytest.approx(density)


def test_gates_cool_once_and_stay_soft_between_densities():
    temperatures = []
    for run, _, _ in descent():
        temperatures.append(run.control.temperature)
        assert not run.control.hardening
        run.until(STEPS)
        assert run.control.temperature == pytest.approx(TEMPERATURES[1])
    assert temperatures[0] == TEMPERATURES[0]
    assert temperatures[1:] == [pytest.approx(TEMPERATURES[1])] * 2


def test_a_copy_hardens_and_finishes_while_the_trunk_goes_on():
    small = []
    for run, _, reached in descent():
        if reached is None:
            continue
        branch = Run(weights=UNEVEN, density=DENSITIES[0], gated_steps=STEPS)
        before = {k: v.clone() for k, v in run.pruner.model.state_dict().items()}
        branch.pruner, branch.model = (
            copied := copy.deepcopy(run.pruner),
            copied.model,
        )
        branch.control = copied.control
        branch.optimizer = torch.optim.AdamW(copied.parameter_groups(2e-3))
        copied.aim(reached, STEPS, reached=reached)
        assert copied.control.hardening
        branch.until(STEPS)
        assert copied.control.temperature == pytest.approx(TEMPERATURES[2])
        hard = branch.kept()
        assert ((hard < 0.01) | (hard > 0.99)).float().mean() > 0.9
        projection = copied.project()
        assert reached - 0.05 < projection.density <= reached
        small.append(sum(p.numel() for p in copied.finish(projection).parameters()))
        after = run.pruner.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert run.pruner.target == pytest.approx(reached)
    assert small == sorted(small, reverse=True)


def test_budget_floors_and_multiples_are_those_of_the_density():
    run = Run(density=0.6)
    run.pruner.aim(0.2, 5)
    alone = Run(density=0.2)
    assert run.control.floors == alone.control.floors
    assert run.control.costs == alone.control.costs
    assert run.pruner.method.density == 0.2
    assert [layer.dense_from for layer in run.pruner.layers.values()] == [
        layer.dense_from for layer in alone.pruner.layers.values()
    ]


def test_a_state_goes_into_a_pruner_with_the_same_aim():
    runs = [run for run, _, _ in descent()]
    run = runs[-1]
    other = Run(weights=UNEVEN, density=DENSITIES[0], gated_steps=STEPS)
    other.pruner.aim(DENSITIES[-1], STEPS, DENSITIES[-2])
    other.pruner.load_state_dict(run.pruner.state_dict())
    other.model.load_state_dict(run.model.state_dict())
    assert torch.equal(other.output(), run.output())
    assert other.pruner.target == run.pruner.target


def test_a_compacted_copy_leaves_the_pruner_as_it_is():
    run = Run(weights=UNEVEN).until(20)
    before = {k: v.clone() for k, v in run.pruner.state_dict().items()}
    expected = run.pruner.expected_density()
    modules = list(map(id, run.pruner.model.modules()))
    small = compacted_copy(run.pruner, run.pruner.project())
    assert not run.pruner.finished
    assert list(map(id, run.pruner.model.modules())) == modules
    assert run.pruner.expected_density() == expected
    assert all(torch.equal(value, before[k]) for k, value in run.pruner.state_dict().items())
    # and it is what finishing gives
    finished = run.pruner.finish()
    assert torch.equal(run.output(small), run.output(finished))


def test_a_density_above_the_one_reached_is_refused():
    run = Run(density=0.6)
    with pytest.raises(LowRankError, match=r"density <= reached must hold, got 0.5 and 0.4"):
        run.pruner.aim(0.5, 5, reached=0.4)


def test_a_density_below_the_floors_is_refused():
    run = Run(density=0.6)
    with pytest.raises(DensityError, match=r"must hold .* got 0.001"):
        run.pruner.aim(0.001, 5)


def test_other_methods_have_one_density():
    pruner = Pruner(Branches(), FlopL0(density=0.4, gated_steps=5))
    with pytest.raises(LowRankError, match="FlopL0 has one density: only Adaptive"):
        pruner.aim(0.2, 5)
    done = Pruner(Branches(), Adaptive(density=0.4, gated_steps=5, start="svd"))
    done.finish()
    with pytest.raises(LowRankError, match="the pruner is finished"):
        done.aim(0.2, 5)
