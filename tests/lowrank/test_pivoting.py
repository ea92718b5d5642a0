"""The pivoted form of factors: the same function with r x r numbers less per layer."""

from __future__ import annotations

import copy
import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowrank import ExportError, LowRankError
from lowrank.conversion import convert
from lowrank.export import load, save
from lowrank.hf import save_pretrained
from lowrank.linear import LowRankLinear
from lowrank.pivoted import PivotedLinear
from lowrank.pivoting import GROWTH, pivot_rows, pivoted
from tests.lowrank import relative_error, tiny_bert, tiny_gpt2
from tests.lowrank.test_auto import compacted, output


def low_rank(rows=12, columns=8, rank=5, bias=True, seed=0, dtype=torch.float64) -> LowRankLinear:
    torch.manual_seed(seed)
    layer = LowRankLinear(columns, rows, rank, bias=bias, dtype=dtype)
    if bias:
        nn.init.normal_(layer.bias)
    return layer


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(12, 8, 5), (8, 12, 8), (9, 9, 1), (300, 70, 40), (1, 4, 1)]
)
def test_it_computes_what_the_factors_do(rows, columns, rank, bias):
    layer = low_rank(rows, columns, rank, bias)
    small = pivoted(copy.deepcopy(layer))
    assert isinstance(small, PivotedLinear)
    x = torch.randn(2, 3, columns, dtype=torch.float64)
    assert relative_error(small(x), layer(x)) < 1e-12
    weight, shift = small.dense()
    assert relative_error(weight, layer.weight @ layer.projection) < 1e-12
    assert shift is None if not bias else torch.equal(shift, layer.bias)
    numbers = small.weight.numel() + small.projection.numel()
    assert numbers == rank * (rows + columns - rank)
    assert small.weight.numel() == 0 or small.weight.abs().max() <= GROWTH * (1 + 1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_rounding_stays_small_where_components_differ_by_orders_of_magnitude(dtype, most):
    exact = low_rank(256, 128, 60)
    exact.weight.mul_(torch.logspace(3, -5, 60, dtype=torch.float64))
    wanted = exact.weight @ exact.projection
    small = pivoted(copy.deepcopy(exact).to(dtype))
    assert small.weight.dtype == dtype
    assert relative_error(small.dense()[0], wanted) < most


@torch.no_grad()
@pytest.mark.parametrize("dead", ["up", "down", "both", "twice"])
def test_factors_that_are_not_independent(dead):
    layer = low_rank()
    if dead in ("up", "both"):
        layer.weight[:, 1:3] = 0
    if dead in ("down", "both"):
        layer.projection[0] = 0
    if dead == "twice":
        layer.weight[:, 1] = layer.weight[:, 0]
    x = torch.randn(7, 8, dtype=torch.float64)
    assert relative_error(pivoted(copy.deepcopy(layer))(x), layer(x)) < 1e-12
    layer.weight.zero_()
    assert torch.equal(pivoted(copy.deepcopy(layer))(x), layer.bias.expand(7, 12))


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_pivots_bound_all_coefficients(rows, rank, seed):
    rank = min(rank, rows)
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(raw * torch.logspace(0, 6, rows, dtype=torch.float64)[:, None]).Q
    pivots = pivot_rows(basis, growth=1.05)
    assert len(set(pivots.tolist())) == rank
    written = torch.linalg.solve(basis[pivots], basis, left=False)
    assert written.abs().max() <= 1.05 * (1 + 1e-9)
    # and so their volume is near that of the best: within growth^r r^(r/2) at the worst
    best = max(abs(torch.linalg.det(basis[list(c)])) for c in combinations(range(rows), rank))
    assert abs(torch.linalg.det(basis[pivots])) >= best / (1.05**rank * rank ** (rank / 2))


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_exchanged_where_the_decomposition_does_not_keep_the_bound(seed):
    # of such matrices 4 in 10 need it
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(random).Q
    pivots = pivot_rows(basis, growth=1.01)
    assert len(set(pivots.tolist())) == 20
    assert torch.linalg.solve(basis[pivots], basis, left=False).abs().max() <= 1.01 * (1 + 1e-9)


def test_rows_as_they_come_would_be_bad_pivots():
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(768, 192, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(random).Q

    def largest(pivots):
        return torch.linalg.solve(basis[pivots], basis, left=False).abs().max()

    assert largest(torch.arange(192)) > 5
    assert largest(pivot_rows(basis)) <= GROWTH


def test_gradients_are_those_of_the_function():
    small = pivoted(low_rank(6, 4, 2))
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: small(x), (x,))
    small(x).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


# --------------------------------------------------------------------------- whole models


@pytest.mark.parametrize(
    ("kind", "read_in_order"),
    [
        ("bert", ("intermediate.dense",)),
        ("gpt2", ("mlp.c_fc",)),
        ("llama", ()),
        ("gpt2 with embedding", ("mlp.c_fc",)),
    ],
)
def test_only_neurons_come_out_in_another_order(kind, read_in_order):
    model, _ = compacted(kind)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    wanted, before = output(model), sum(p.numel() for p in model.parameters())
    ranks = [m.rank for m in model.modules() if type(m) is LowRankLinear]
    assert pivoted(model) is model
    small = {n: m for n, m in model.named_modules() if isinstance(m, PivotedLinear)}
    assert len(small) == len(ranks)
    assert before - sum(p.numel() for p in model.parameters()) == sum(r * r for r in ranks)
    for name, layer in small.items():
        assert (layer.order is None) == name.endswith(read_in_order or "\n")
    assert relative_error(output(model), wanted) < 1e-5


def test_a_layer_with_two_readers_keeps_its_order():
    model, _ = compacted("bert")
    first, second = model.bert.encoder.layer
    second.intermediate.dense = first.intermediate.dense
    wanted = output(model)
    pivoted(model)
    assert first.intermediate.dense is second.intermediate.dense
    assert first.intermediate.dense.order is not None
    assert relative_error(output(model), wanted) < 1e-5


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_a_dense_model_stays_as_it_is(make):
    model = make()
    state = copy.deepcopy(model.state_dict())
    pivoted(model)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_infinite_factors_are_refused_by_name():
    model, _ = compacted("bert")
    layer = next(n for n, m in model.named_modules() if type(m) is LowRankLinear)
    model.get_submodule(layer).projection.data[0, 0] = torch.inf
    with pytest.raises(LowRankError, match=f"layer '{layer}': its factors must be finite"):
        pivoted(model)


def test_a_damaged_order_is_refused(tmp_path: Path):
    small = nn.Sequential(pivoted(low_rank(dtype=torch.float32)))
    small[0].order[0] = small[0].order[1]
    save(small, tmp_path)
    with pytest.raises(ExportError, match="layer '0': each of its outputs must come once"):
        load(nn.Sequential(nn.Linear(8, 12)), tmp_path)


@pytest.mark.parametrize("kind", ["pivoted bert", "sliced gpt2"])
def test_transformers_refuses_damaged_indices_too(kind, tmp_path: Path):
    model, auto_class = compacted(kind)
    indices = next(b for n, b in model.named_buffers() if n.endswith(("order", "kept_in")))
    indices[0] = indices[1]
    save_pretrained(model, tmp_path, auto_class)
    with pytest.raises(ExportError, match=r"^the export: layer '\S+'"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [{"ordered": 1}, {"ordered": None}, {"rank": 13}])
def test_a_description_that_cannot_be_is_refused(change, tmp_path: Path):
    save(nn.Sequential(pivoted(low_rank(dtype=torch.float32))), tmp_path)
    path = tmp_path / "lowrank.json"
    manifest = json.loads(path.read_text())
    manifest["layers"]["0"] |= change
    path.write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"ordered must be true|1 <= rank <= 8 must hold"):
        load(nn.Sequential(nn.Linear(8, 12)), tmp_path)


def test_the_way_back_is_refused(tmp_path: Path):
    model, auto_class = compacted("pivoted bert")
    save_pretrained(model, tmp_path / "pivoted", auto_class)
    with pytest.raises(ExportError, match="take the export it was made of"):
        convert(tmp_path / "pivoted", "factorized", tmp_path / "factorized")
    assert not (tmp_path / "factorized").exists()
