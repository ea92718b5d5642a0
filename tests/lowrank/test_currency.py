"""Other currencies than parameters."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowrank import Agp, FixedRank, LayerShape, LowRankError, Macs, Pruner, Start
from lowrank.counting import macs_per_token
from lowrank.currency import Currency, Latency, ScaledCost, TableCost, positions_per_token
from lowrank.density import LinearCost

times = st.integers(1, 50).map(lambda n: n / 8)


class Encoder(nn.Module):
    """A layer used twice per position, one once, a pooler on the first position of each text."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(16, 16)
        self.once = nn.Linear(16, 24)
        self.pooler = nn.Linear(24, 24, bias=False)
        self.unused = nn.Linear(24, 24)

    def forward(self, x):
        hidden = self.once(torch.tanh(self.shared(torch.tanh(self.shared(x)))))
        return self.pooler(hidden[:, 0])


LAYERS = ["shared", "once", "pooler"]
POSITIONS = {"shared": 2.0, "once": 1.0, "pooler": 1 / 5}


def encoder():
    torch.manual_seed(0)
    return Encoder()


def texts():
    """Three of five tokens."""
    return {"x": torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))}


def matrices(model):
    return {name: model.get_submodule(name) for name in LAYERS}


# --- positions


def test_positions_count_every_use_and_every_row():
    model = encoder()
    found = positions_per_token(model, matrices(model), texts(), num_tokens=15)
    assert found == pytest.approx(POSITIONS)


def test_a_layer_that_the_pass_does_not_reach_is_named():
    model = encoder()
    with pytest.raises(LowRankError, match=r"the pass does not reach unused$"):
        positions_per_token(model, matrices(model) | {"unused": model.unused}, texts(), 15)


@pytest.mark.parametrize("training", [True, False])
def test_hooks_and_mode_are_restored_also_after_a_failure(training):
    model = encoder().train(training)
    positions_per_token(model, matrices(model), texts(), 15)
    with pytest.raises(RuntimeError):
        positions_per_token(model, matrices(model), {"x": torch.randn(3, 5, 17)}, 15)
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert all(module.training is training for module in model.modules())


# --- multiply-accumulates


@pytest.mark.parametrize("factor", [0.2, 3.0])
@pytest.mark.parametrize("base", [LayerShape(6, 10), LinearCost(7, 4)])
def test_a_scaled_cost_is_the_cost_times_a_factor(base, factor):
    scaled = ScaledCost(base, factor)
    assert scaled.num_units == base.num_units
    assert scaled.unit_cost == base.unit_cost * factor
    assert scaled.dense_cost == base.dense_cost * factor
    for kept in range(base.num_units + 1):
        assert scaled.cost(kept) == base.cost(kept) * factor
        expected = torch.tensor(kept + 0.0, requires_grad=True)
        charge = scaled.charge(expected)
        assert charge.item() == pytest.approx(base.cost(kept) * factor)
        charge.backward()
        assert expected.grad.item() == pytest.approx(base.unit_cost * factor)


@pytest.mark.parametrize("method", [FixedRank(density=0.4, start=Start()), None])
def test_a_budget_of_macs_is_one_that_torch_counts(method):
    method = method or Agp(density=0.4, granularity="column", gated_steps=1)
    model, inputs = encoder(), texts()
    dense = macs_per_token(model, inputs, 15)
    assert dense == pytest.approx(sum(POSITIONS[n] * m.weight.numel() for n, m in _items(model)))
    pruner = Pruner(model, method, include=LAYERS, currency=Macs(POSITIONS))
    projection = pruner.project()
    small = pruner.finish(projection)
    counted = macs_per_token(small, inputs, 15)
    assert counted == pytest.approx(projection.density * dense)
    assert counted <= 0.4 * dense
    cheapest = min(cost.unit_cost for cost in pruner.control.costs.values())
    assert counted + cheapest > 0.4 * dense


def _items(model):
    return matrices(model).items()


def test_parameters_are_the_currency_by_default():
    base = LayerShape(3, 4)
    assert Currency().cost("any", base) is base


# --- tables


@given(factorized=st.lists(times, min_size=1, max_size=12), dense=times)
@settings(deadline=None, max_examples=200)
def test_a_table_of_wobbling_times_does_not_fall_and_ends_dense(factorized, dense):
    table = TableCost.of_factors(factorized, dense)
    full_rank = len(factorized)
    assert table.num_units == full_rank
    assert table.cost(0) == 0
    assert table.cost(full_rank) == table.dense_cost == dense
    costs = [table.cost(rank) for rank in range(full_rank + 1)]
    assert all(a <= b for a, b in pairwise(costs))
    for rank in range(1, full_rank):
        assert table.cost(rank) == min([dense, *factorized[rank - 1 :]])


@given(factorized=st.lists(times, min_size=1, max_size=12), dense=times, data=st.data())
@settings(deadline=None, max_examples=200)
def test_the_charge_interpolates_and_pulls_with_the_mean_slope(factorized, dense, data):
    table = TableCost.of_factors(factorized, dense)
    rank = data.draw(st.integers(0, table.num_units - 1))
    part = data.draw(st.integers(0, 4)) / 4
    kept = torch.tensor(rank + part, requires_grad=True)
    charge = table.charge(kept)
    between = (1 - part) * table.cost(rank) + part * table.cost(rank + 1)
    assert charge.shape == ()
    assert charge.item() == pytest.approx(between, rel=1e-6)
    charge.backward()
    plateau = min(k for k in range(1, table.num_units + 1) if table.cost(k) == dense)
    assert kept.grad.item() == pytest.approx(dense / plateau, rel=1e-6)


def test_the_charge_ends_at_dense_but_its_gradient_does_not():
    table = TableCost((0.0, 2.0, 3.0, 3.0))
    kept = torch.tensor(3.0, requires_grad=True)
    charge = table.charge(kept)
    charge.backward()
    assert (charge.item(), kept.grad.item()) == (3.0, 1.5)
    assert table.charge(torch.tensor(3.0000002)).item() == 3.0


@pytest.mark.parametrize(
    "values",
    [
        (),
        (0.0,),
        (1.0, 2.0),
        (0.0, 2.0, 1.0),
        (0.0, 0.0),
        (0.0, 0.0, 0.0),
        (0.0, 1.0, math.nan),
        (0.0, math.nan, 2.0),
        (math.nan, 1.0, 2.0),
        (0.0, 1.0, math.inf),
        (0.0, -1.0),
    ],
)
def test_a_table_that_is_none_is_refused(values):
    with pytest.raises(LowRankError, match="must start at 0, not fall, and end above 0"):
        TableCost(values)


@pytest.mark.parametrize("dense", [0.0, math.nan, math.inf])
def test_times_that_cannot_be_are_refused(dense):
    with pytest.raises(LowRankError, match="end above 0"):
        TableCost.of_factors([1.0, 2.0], dense)


def test_a_budget_of_time_is_met():
    # measured so that every rank but the last is faster than dense
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tables = {
        "0": TableCost.of_factors([3.0, 3.1, 3.0, 3.4, 3.9, 9.0], 4.0),
        "1": TableCost.of_factors([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 6.0),
    }
    pruner = Pruner(model, FixedRank(density=0.5, start=Start()), currency=Latency(tables))
    projection = pruner.project()
    seconds = sum(tables[name].cost(rank) for name, rank in projection.ranks.items())
    assert projection.density == seconds / 10
    assert seconds <= 5
    for name, rank in projection.ranks.items():
        assert seconds - tables[name].cost(rank) + tables[name].cost(rank + 1) > 5


def test_time_is_known_for_ranks_alone():
    latency = Latency({"0": TableCost((0.0, 1.0))})
    with pytest.raises(LowRankError, match="needs a method that prunes ranks"):
        Pruner(nn.Sequential(nn.Linear(2, 2)), Agp(density=0.5), currency=latency)
