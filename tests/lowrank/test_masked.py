"""Masked layers against loops over their units."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lowrank import Agp, LowRankError, Pruner
from lowrank.linear import dense_weight
from lowrank.masked import MaskedLinear, keep_zeros
from lowrank.prunable import PrunableLinear
from tests.lowrank import relative_error

ROWS, COLUMNS, BLOCK = 6, 8, 2

UNITS = {
    "weight": [[(i, j)] for i, j in itertools.product(range(ROWS), range(COLUMNS))],
    "block": [
        [(i + di, j + dj) for di in range(BLOCK) for dj in range(BLOCK)]
        for i, j in itertools.product(range(0, ROWS, BLOCK), range(0, COLUMNS, BLOCK))
    ],
    "row": [[(i, j) for j in range(COLUMNS)] for i in range(ROWS)],
    "column": [[(i, j) for i in range(ROWS)] for j in range(COLUMNS)],
}
"""Entries of each unit, [out, in], in the order of the units."""

granularities = pytest.mark.parametrize("granularity", list(UNITS))
kinds = pytest.mark.parametrize("kind", ["linear", "conv1d"])


def make(kind="linear", bias=True):
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(COLUMNS, ROWS, bias=bias).eval()
    layer = Conv1D(ROWS, COLUMNS)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer.eval()


def masked(granularity, kind="linear", movement=False, bias=True):
    return MaskedLinear(make(kind, bias), granularity, BLOCK, movement)


def some_units(granularity, seed=1):
    units = UNITS[granularity]
    keep = torch.rand(len(units), generator=torch.Generator().manual_seed(seed)) < 0.5
    assert 0 < int(keep.sum()) < len(units)
    return keep


def entries(granularity, keep):
    """Mask of the matrix, one entry at a time."""
    mask = torch.zeros(ROWS, COLUMNS)
    for unit, stays in zip(UNITS[granularity], keep.tolist(), strict=True):
        for place in unit:
            mask[place] = float(stays)
    return mask


@kinds
@granularities
def test_scores_are_the_mean_squares_of_the_units(granularity, kind):
    layer = masked(granularity, kind)
    weight = dense_weight(make(kind)).detach().double()
    wanted = [
        sum(float(weight[place]) ** 2 for place in unit) / len(unit) for unit in UNITS[granularity]
    ]
    scores = layer.scores()
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), torch.tensor(wanted).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("movement", [False, True])
@kinds
@granularities
def test_a_mask_removes_whole_units(granularity, kind, movement):
    layer = masked(granularity, kind, movement)
    dense, keep, x = make(kind), some_units(granularity), torch.randn(5, COLUMNS)
    assert torch.equal(layer(x), F.linear(x, dense_weight(dense), dense.bias))
    layer.set_mask(keep)
    weight = dense_weight(dense) * entries(granularity, keep)
    torch.testing.assert_close(layer(x), F.linear(x, weight, dense.bias), rtol=1e-6, atol=1e-6)
    layer.set_mask(torch.ones_like(keep))
    assert torch.equal(layer(x), F.linear(x, dense_weight(dense), dense.bias))


@pytest.mark.parametrize("bias", [True, False])
@granularities
@torch.no_grad()
def test_compaction_computes_what_the_mask_kept(granularity, bias):
    layer, keep, x = masked(granularity, bias=bias), some_units(granularity), torch.randn(5, 8)
    layer.set_mask(keep)
    small = layer.compact(keep)
    assert relative_error(small(x), layer(x)) < 1e-6
    num_kept = sum(len(unit) for unit, stays in zip(UNITS[granularity], keep, strict=True) if stays)
    assert int(small.weight.count_nonzero()) == num_kept
    if granularity in ("row", "column"):
        assert small.weight.numel() == num_kept
    else:
        assert type(small) is nn.Linear


@granularities
def test_compaction_in_full_is_the_dense_layer(granularity):
    dense = make("conv1d")
    small = masked(granularity, "conv1d").compact(torch.ones(len(UNITS[granularity])).bool())
    assert type(small) is Conv1D
    assert torch.equal(small.weight, dense.weight)
    assert torch.equal(small.bias, dense.bias)


@granularities
def test_the_cost_counts_the_weights_of_a_unit(granularity):
    method = Agp(density=0.5, granularity=granularity, block=BLOCK)
    layer = method.layer(PrunableLinear(make()))
    cost = method.cost(layer.shape)
    assert cost == layer.cost
    assert (cost.num_units, cost.unit_cost) == (
        len(UNITS[granularity]),
        len(UNITS[granularity][0]),
    )
    assert cost.dense_cost == ROWS * COLUMNS


@pytest.mark.parametrize("block", [4, 3, 16])
def test_a_block_that_does_not_divide_is_refused_with_rule_and_values(block):
    wanted = f"blocks of {block} x {block} must divide the matrix, got {ROWS} x {COLUMNS}"
    with pytest.raises(LowRankError, match=f"^{wanted}$"):
        MaskedLinear(make(), "block", block)
    model = nn.Sequential(make())
    with pytest.raises(LowRankError, match=f"layer '0': {wanted}"):
        Pruner(model, Agp(density=0.5, granularity="block", block=block, gated_steps=2))
    assert type(model[0]) is nn.Linear


# --- movement


@kinds
@granularities
def test_the_gradient_of_a_score_is_that_of_its_units_mask(granularity, kind):
    layer, keep = masked(granularity, kind, movement=True), some_units(granularity)
    layer.set_mask(keep)
    x, y = torch.randn(5, COLUMNS), torch.randn(5, ROWS)
    (layer(x) - y).square().sum().backward()
    weight = dense_weight(make(kind)).detach()
    effective = (weight * entries(granularity, keep)).requires_grad_()
    (F.linear(x, effective, make(kind).bias.detach()) - y).square().sum().backward()
    # Sanh et al., eq. 5: of removed units too, so that they can come back
    moved = effective.grad * weight
    wanted = [sum(float(moved[place]) for place in unit) for unit in UNITS[granularity]]
    torch.testing.assert_close(
        layer.score.grad.flatten(), torch.tensor(wanted), rtol=1e-4, atol=1e-5
    )
    assert (layer.score.grad != 0).all()
    wanted = effective.grad * entries(granularity, keep)
    torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-4, atol=1e-5)


@granularities
def test_scores_do_not_round_the_mask(granularity):
    layer, x = masked(granularity, movement=True), torch.randn(5, COLUMNS)
    wanted = masked(granularity)(x)
    with torch.no_grad():
        layer.score.uniform_(1, 2)  # here (1 + s) - s is not 1 in float32
    assert torch.equal(layer(x), wanted)
    layer.set_mask(torch.zeros(len(UNITS[granularity])))
    assert torch.equal(layer(x), layer.bias.expand(5, ROWS))


def test_movement_keeps_what_moves_away_from_zero():
    layer = MaskedLinear(nn.Linear(2, 1, bias=False), "weight", movement=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.9, 0.1]]))
    # the loss wants the first weight at 0 and the second at 1
    optimizer = torch.optim.SGD([layer.score], lr=0.1)
    ((layer(torch.eye(2)) - torch.tensor([[0.0], [1.0]])).square().sum()).backward()
    optimizer.step()
    assert layer.scores()[0] < 0 < layer.scores()[1]


# --- zeros after compaction


def test_zeros_are_kept_by_an_optimizer_with_momentum_and_decay():
    layer = make()
    with torch.no_grad():
        layer.weight[::2, ::3] = 0
    zero = layer.weight == 0
    keep_zeros(layer)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(5):
        (layer(torch.randn(4, COLUMNS)) - 1).square().sum().backward()
        assert (layer.weight.grad[zero] == 0).all()
        assert (layer.weight.grad[~zero] != 0).all()
        optimizer.step()
    assert torch.equal(layer.weight == 0, zero)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_zeros_are_kept_when_the_layer_is_moved_afterwards(dtype):
    layer = make()
    with torch.no_grad():
        layer.weight[0] = 0
    keep_zeros(layer)
    layer.to(dtype)
    layer(torch.randn(4, COLUMNS, dtype=dtype)).square().sum().backward()
    assert (layer.weight.grad[0] == 0).all()
    assert (layer.weight.grad[1:] != 0).any()
