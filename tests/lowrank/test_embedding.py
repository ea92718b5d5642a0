"""The layers: a gated table and its head, and what they become."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowrank import (
    FlopL0,
    GateConfig,
    GatedEmbedding,
    HardConcreteGate,
    LowRankEmbedding,
    LowRankHead,
    Pruner,
    factorize,
)
from lowrank.embedding import is_embedding
from lowrank.gated_embedding import GatedHead
from tests.lowrank import relative_error, scramble_gates
from tests.lowrank.embeddings import ids, tagger

ROWS, WIDTH = 30, 8
BREAK_EVEN = 6  # 240 / 38


def gated(padding=None, tied=True, open_prob=0.9, rank=None, dtype=torch.float64, bias=True):
    model = tagger(padding=padding, tied=tied, dtype=dtype, bias=bias)
    heads = [model.output] if tied else []
    factors = factorize(model.table.weight, rank)
    gate = HardConcreteGate(len(factors.down), GateConfig(init_open_prob=open_prob))
    return model, GatedEmbedding(model.table, heads, gate, factors)


def keep(count, of=WIDTH):
    mask = torch.zeros(of, dtype=torch.bool)
    mask[torch.randperm(of, generator=torch.Generator().manual_seed(0))[:count]] = True
    return mask


def hidden(seed=3, dtype=torch.float64):
    return torch.randn(5, 7, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- gated


@pytest.mark.parametrize("open_prob", [0.3, 0.999])
@torch.no_grad()
def test_at_full_rank_both_ends_compute_what_the_dense_ones_did(open_prob):
    model, layer = gated(open_prob=open_prob)
    (head,) = layer.heads
    assert not layer.training
    assert relative_error(layer(ids()), model.table(ids())) < 1e-6  # gates are float32
    assert relative_error(head(hidden()), model.output(hidden())) < 1e-6


@torch.no_grad()
def test_the_formula_of_both_ends():
    _, layer = gated()
    (head,) = layer.heads
    layer.train()
    head.train()
    layer.gate.noise.uniform_(0.1, 0.9, generator=torch.Generator().manual_seed(1))
    z = layer.gate().double()
    assert len(z.unique()) > 4
    table = layer.weight @ torch.diag(z) @ layer.projection
    torch.testing.assert_close(layer(ids()), table[ids()])
    torch.testing.assert_close(head(hidden()), hidden() @ table.t() + head.bias)


def test_both_ends_hold_the_same_parameters_and_one_gate():
    model, layer = gated()
    (head,) = layer.heads
    assert isinstance(head, GatedHead)
    assert layer.stand_ins == (layer, head)
    assert head.weight is layer.weight is layer.up
    assert head.projection is layer.projection is layer.down
    assert head.gate is layer.gate
    assert head.bias is model.output.bias
    # of which the head would otherwise be a second place in the model
    assert not any(module is head for module in layer.modules())
    alone = gated(tied=False)[1]
    assert alone.stand_ins == (alone,)


def test_the_gradient_of_a_tied_layer_is_that_of_both_uses():
    """Gates, A and B: one pass through both ends, and a pass through each of two copies."""
    model, layer = gated()
    pair = nn.ModuleDict({"table": layer, "output": layer.heads[0]}).train()
    layer.gate.noise.fill_(0.4)
    x, targets = ids(), ids(seed=9).flatten()

    def loss(first, second):
        states = torch.tanh(model.hidden(first["table"](x)))
        return F.cross_entropy(second["output"](states).flatten(0, 1), targets)

    both = [copy.deepcopy(pair) for _ in range(2)]
    loss(pair, pair).backward()
    loss(*both).backward()
    for get in (lambda m: m.weight, lambda m: m.projection, lambda m: m.gate.parameter):
        parts = [get(both[0]["table"]).grad, get(both[1]["output"]).grad]
        assert all(part.abs().max() > 0 for part in parts)
        torch.testing.assert_close(get(layer).grad, parts[0] + parts[1])


def test_a_deep_copy_keeps_the_tie():
    model = tagger()
    pruner = Pruner(model, FlopL0(density=0.5), embeddings=True)
    twin = copy.deepcopy(pruner.model)
    assert twin.output.weight is twin.table.weight is not pruner.model.table.weight
    assert twin.output.gate is twin.table.gate


@pytest.mark.parametrize("module", ["gated", "small"])
def test_vectors_keep_the_dtype_of_the_table_under_autocast(module):
    layer = gated(dtype=torch.float32)[1]
    layer = layer if module == "gated" else layer.compact(keep(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(ids()).dtype == torch.float32


# --- compaction


@pytest.mark.parametrize("count", range(1, WIDTH + 1))
@torch.no_grad()
def test_what_is_left_computes_what_gates_that_are_shut_did(count):
    _, layer = gated()
    kept = keep(count)
    layer.gate.parameter[~kept] = -60
    wanted, logits = layer(ids()), layer.heads[0](hidden())
    table, head = layer.compact_all(kept)
    torch.testing.assert_close(table(ids()), wanted)
    torch.testing.assert_close(head(hidden()), logits)
    assert head.weight is table.weight
    assert head.bias is layer.heads[0].bias
    if count <= BREAK_EVEN:
        assert (type(table), type(head)) == (LowRankEmbedding, LowRankHead)
        assert head.projection is table.projection
        stored = sum(p.numel() for p in table.parameters())
        assert stored == count * (ROWS + WIDTH) < ROWS * WIDTH
        assert table.embedding_dim == head.in_features == WIDTH
        assert table.num_embeddings == head.out_features == ROWS
    else:
        assert (type(table), type(head)) == (nn.Embedding, nn.Linear)


def test_without_a_head_one_module_is_left():
    _, layer = gated(tied=False)
    (table,) = layer.compact_all(keep(2))
    assert type(table) is LowRankEmbedding
    assert type(layer.compact(keep(2))) is LowRankEmbedding


def test_compaction_keeps_mode_and_dtype_and_draws_nothing():
    _, layer = gated(dtype=torch.bfloat16)
    layer.train()
    state = torch.get_rng_state()
    table, head = layer.compact_all(keep(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert table.training
    assert not head.training
    assert {p.dtype for p in (*table.parameters(), *head.parameters())} == {torch.bfloat16}


# --- padding


def trained_a_step(modules, seed=0):
    """A step of Adam with decay on both ends, with padding among inputs and targets."""
    parameters = {id(p): p for module in modules for p in module.parameters()}
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=0.1, weight_decay=0.1)
    tokens = ids(seed=seed)
    tokens[:, 0], tokens[:, 1] = 4, 5
    table, *heads = modules
    states = torch.tanh(table(tokens))
    loss = states.square().mean()
    for head in heads:
        loss = loss + F.cross_entropy(head(states).flatten(0, 1), tokens.flatten())
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("count", [3, WIDTH])
def test_a_zero_padding_row_stays_zero_through_training_and_compaction(tied, count):
    _, layer = gated(padding=4, tied=tied)
    trained_a_step(layer.stand_ins)
    small = layer.compact_all(keep(count))
    trained_a_step(small, seed=1)
    for table in (layer, small[0]):
        assert not table.weight[4].any()
        assert not table(torch.tensor([4])).any()
        assert table.weight[5].any()
        assert table.weight.grad[5].any()
        assert not table.weight.grad[4].any()
    assert small[0].padding_idx == 4


def test_a_padding_row_that_is_not_zero_gets_no_gradient_from_the_input():
    """As nn.Embedding: pretrained tables often have a vector there."""
    model = tagger(padding=4, tied=False, dtype=torch.float64)
    with torch.no_grad():
        model.table.weight[4] = 1.0
    factors = factorize(model.table.weight)
    layer = GatedEmbedding(model.table, [], HardConcreteGate(WIDTH, GateConfig()), factors)
    torch.testing.assert_close(
        layer(torch.tensor([4])), model.table(torch.tensor([4])), rtol=1e-5, atol=1e-6
    )
    layer(torch.tensor([4, 5])).sum().backward()
    assert not layer.weight.grad[4].any()
    assert layer.weight.grad[5].any()


# --- selection


def test_only_plain_tables_are_factorized():
    assert is_embedding(nn.Embedding(4, 3, padding_idx=0))
    assert not is_embedding(nn.Embedding(4, 3, max_norm=1.0))
    assert not is_embedding(nn.Embedding(4, 3, sparse=True))
    assert not is_embedding(nn.Embedding(4, 3, scale_grad_by_freq=True))
    assert not is_embedding(LowRankEmbedding(4, 3, 2))
    assert not is_embedding(nn.Linear(4, 3))


@torch.no_grad()
def test_one_sample_serves_both_ends_of_a_model_in_training():
    pruner = Pruner(tagger(), FlopL0(density=0.5), embeddings=True)
    scramble_gates(pruner)
    model = pruner.model.train()
    z = pruner.layers["table"].gate()
    torch.testing.assert_close(model.output.gate(), z)
    table = model.table.weight @ torch.diag(z) @ model.table.projection
    states = torch.tanh(model.hidden(table[ids()]))
    torch.testing.assert_close(model(ids()), states @ table.t() + model.output.bias)
