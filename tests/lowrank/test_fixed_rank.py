"""Ranks chosen beforehand, against an independent truncated SVD."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lowrank import FixedRank, Pruner, Start
from lowrank.linear import dense_weight
from tests.lowrank import relative_error
from tests.lowrank.every_method import FIXED, METHODS, NAMES, moments_of, toy


def best_of_rank(weight, covariance, rank):
    """The oracle: truncated SVD of W S for S Sᵀ = C, multiplied by S⁻¹."""
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.sqrt()) @ vectors.t()
    u, s, v = torch.linalg.svd(weight @ root, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(root)


@pytest.mark.parametrize("kind", list(FIXED))
@torch.no_grad()
def test_fixed_ranks_are_the_best_of_their_rank_with_the_bias_that_belongs_to_them(kind):
    dense = toy().double()
    moments = moments_of(dense)
    method = METHODS[kind](density=0.6)
    pruner = Pruner(toy().double(), method, moments=moments)
    ranks = pruner.project().ranks
    small = pruner.finish()
    assert set(ranks.values()) - {8, 12}  # some layer is truncated
    for name, rank in ranks.items():
        layer, input_moments = dense.get_submodule(name), moments[name]
        weight = dense_weight(layer)
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias
        if method.start.kind == "svd":
            metric, mean = torch.eye(weight.shape[1]).double(), torch.zeros(weight.shape[1])
        elif layer.bias is None:
            metric, mean = input_moments.second_moment, torch.zeros(weight.shape[1])
        else:
            metric, mean = input_moments.covariance, input_moments.mean
        best = best_of_rank(weight, metric, rank)
        x = torch.randn(5, weight.shape[1], dtype=torch.float64)
        wanted = x @ best.t() + bias + (weight - best) @ mean.double()
        assert relative_error(small.get_submodule(name)(x), wanted) < 1e-4


@pytest.mark.parametrize("rank", ["full", "break-even"])
@torch.no_grad()
def test_layers_that_share_a_bias_each_get_their_own_mean(rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).double()
    model[2].bias = model[0].bias
    dense, moments = copy.deepcopy(model), moments_of(model)
    method = FixedRank(density=0.5, start=Start(kind="covariance", rank=rank))
    small = Pruner(model, method, moments=moments).finish()
    for name in ("0", "2"):
        weight, best = dense.get_submodule(name).weight, small.get_submodule(name)
        removed = weight - best.weight @ best.projection
        assert removed.norm() > 0.1
        wanted = dense[0].bias + removed @ moments[name].mean
        torch.testing.assert_close(best.bias, wanted)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.37, 0.5])
def test_a_uniform_choice_is_the_same_fraction_of_every_layer(density):
    sizes = [(64, 64), (64, 64), (64, 256), (256, 64), (64, 96), (1, 64)]
    model = nn.Sequential(*(nn.Linear(*size, bias=False) for size in sizes))
    method = FixedRank(density=density, start=Start(), rank_multiple=1)
    include = [str(number) for number in range(5)]
    ranks = Pruner(model, method, include=include).project().ranks
    for name, (rows, columns) in zip(include, sizes, strict=False):
        share = density * rows * columns / (rows + columns)
        assert int(share) <= ranks[name] <= int(share) + 1


@pytest.mark.parametrize("min_rank", [1, 2, 3])
def test_a_uniform_choice_keeps_the_minimum_rank_where_it_would_be_less(min_rank):
    # a fraction of 0.4 of the break-even ranks 32 and 3.76
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4))
    method = FixedRank(density=0.4, min_rank=min_rank, start=Start())
    pruner = Pruner(model, method)
    projection = pruner.project()
    assert projection.ranks["0"] <= 13
    assert min_rank <= projection.ranks["1"] <= max(min_rank, 2)
    assert projection.density <= 0.4
    assert [len(mask) for mask in projection.keep.values()] == [64, 4]


def test_a_uniform_choice_gives_the_floor_or_one_more_and_uses_the_budget():
    # the smallest layer costs least: all of what is left over could go to it
    sizes = [(64, 64), (48, 80), (8, 8)]
    dense = sum(rows * columns for rows, columns in sizes)
    for density in (0.11, 0.25, 0.5, 0.66, 0.9):
        model = nn.Sequential(*(nn.Linear(*size, bias=False) for size in sizes))
        method = FixedRank(density=density, start=Start(), rank_multiple=1)
        projection = Pruner(model, method).project()
        left = (density - projection.density) * dense
        assert left >= -1e-6
        for rank, (rows, columns) in zip(projection.ranks.values(), sizes, strict=True):
            uniform = int(density * rows * columns / (rows + columns))
            assert max(1, uniform) <= rank <= uniform + 1
            assert rank == uniform + 1 or left < rows + columns


def test_a_greedy_choice_leaves_out_the_least_output_for_its_size():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([9.0, 8, 7, 1, 1, 1, 1, 1])))
        model[1].weight.copy_(torch.diag(torch.tensor([6.0, 2, 2, 2, 2, 2, 2, 2])))
    method = FixedRank(density=0.5, allocation="greedy", start=Start())
    assert Pruner(model, method).project().ranks == {"0": 3, "1": 1}


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_a_greedy_choice_knows_no_scale(scale):
    def ranks(factor):
        model = toy()
        with torch.no_grad():
            for name in NAMES:
                model.get_submodule(name).weight.mul_(factor)
        method = FixedRank(density=0.5, allocation="greedy", start=Start())
        return Pruner(model, method).project().ranks

    assert ranks(scale) == ranks(1.0)
