"""What every method promises of embeddings: one budget with the matrices, exact projection, plain
layers at the end; and who refuses them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowrank import (
    Agp,
    DensityError,
    GatedEmbedding,
    LowRankEmbedding,
    LowRankError,
    LowRankHead,
    Macs,
    NeuronL0,
    Pruner,
    find_layers,
    load,
    save,
)
from lowrank.counting import macs_per_token, num_matrix_parameters, num_parameters
from lowrank.currency import EmbeddingMacs, Latency, TableCost, positions_per_token
from lowrank.density import LayerShape
from lowrank.linear import LowRankLinear
from tests.lowrank import relative_error
from tests.lowrank.embeddings import embedding_pruner, ids, tagger
from tests.lowrank.every_method import METHODS, STEPS, assert_same, optimizer_of, shut

FACTORS = [kind for kind in METHODS if not kind.startswith(("agp", "movement", "neuron"))]
PRESERVING = [k for k in FACTORS if "faithful" not in k and "adaptive" not in k]
every_method = pytest.mark.parametrize("kind", FACTORS)
tied_or_not = pytest.mark.parametrize("tied", [True, False])
ROWS, WIDTH = 30, 8
TABLE, HIDDEN = ROWS * WIDTH, WIDTH * WIDTH


def prune(kind, tied=True, density=0.5, seed=11, padding=4, **fields):
    method = METHODS[kind](density=density, **fields)
    return embedding_pruner(tagger(tied=tied, padding=padding), method, {"ids": ids(40)}, seed=seed)


def loss_of(model, step):
    tokens = ids(8, seed=100 + step)
    return F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1, 1).flatten())


def train(pruner, optimizer, first=0, last=STEPS):
    pruner.model.train()
    for step in range(first, last):
        (loss_of(pruner.model, step) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    pruner.model.eval()


@every_method
@tied_or_not
def test_the_pool_holds_the_tied_pair_once(kind, tied):
    pruner = prune(kind, tied)
    assert list(pruner.layers) == ["table", "hidden"] + ([] if tied else ["output"])
    assert pruner.num_dense == TABLE + HIDDEN + (0 if tied else TABLE)
    assert isinstance(pruner.layers["table"], GatedEmbedding)
    assert pruner.control.costs["table"].unit_cost == ROWS + WIDTH


@pytest.mark.parametrize("kind", PRESERVING)
@tied_or_not
@torch.no_grad()
def test_insertion_preserves_the_function(kind, tied):
    pruner = prune(kind, tied)
    assert relative_error(pruner.model(ids()), tagger(tied=tied, padding=4)(ids())) < 1e-5


@every_method
@tied_or_not
def test_every_step_reaches_every_parameter(kind, tied):
    pruner = prune(kind, tied)
    optimizer = optimizer_of(pruner)
    pruner.model.train()
    for step in range(STEPS + 2):
        (loss_of(pruner.model, step) + pruner.penalty()).backward()
        for name, parameter in pruner.model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        assert not pruner.layers["table"].weight[4].any()


@every_method
@tied_or_not
@pytest.mark.parametrize("density", [0.3, 0.5, 0.9])
def test_after_training_the_density_is_met_and_plain_layers_are_left(kind, tied, density, tmp_path):
    pruner = prune(kind, tied, density)
    train(pruner, optimizer_of(pruner))
    names, dense = list(pruner.layers), pruner.num_dense
    projection = pruner.project()
    if "faithful" not in kind:
        assert projection.density <= density
    shut(pruner, projection)
    for layer in pruner.layers.values():
        if hasattr(layer, "mean"):
            layer.mean = None  # or the bias would make up for what is shut
    wanted = pruner.model(ids())
    small = pruner.finish(projection)
    table, head = small.table, small.output
    assert type(table) in (LowRankEmbedding, nn.Embedding)
    assert type(head) in ((LowRankHead, nn.Linear) if tied else (LowRankLinear, nn.Linear))
    stored = num_matrix_parameters(small, names)
    assert stored == pytest.approx(projection.density * dense)
    biases = WIDTH + ROWS
    assert num_parameters(small) == stored + biases
    assert relative_error(small(ids()), wanted) < 1e-4
    assert not table.weight[4].any()
    if tied:
        assert head.weight is table.weight
    loaded = load(tagger(seed=5, tied=tied, padding=4), save(small, tmp_path)).eval()
    assert torch.equal(loaded(ids()), small(ids()))


@every_method
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(kind):
    whole = prune(kind)
    train(whole, optimizer_of(whole))
    first = prune(kind)
    optimizer = optimizer_of(first)
    train(first, optimizer, last=5)
    resumed = prune(kind)
    resumed.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    again = optimizer_of(resumed)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(resumed, again, first=5)
    assert_same(resumed.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("method", [Agp(density=0.5), NeuronL0(density=0.5)])
def test_methods_of_other_units_refuse_embeddings_and_leave_the_model(method):
    model = tagger()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LowRankError, match=r"layer 'table': this method prunes linear layers only"):
        Pruner(model, method, embeddings=True)
    assert_same(model.state_dict(), before)
    assert type(model.table) is nn.Embedding


def test_a_density_that_no_rank_meets_names_the_least():
    with pytest.raises(DensityError, match=r"density >= 0.177632 must hold"):
        # (38 + 16) / (240 + 64)
        prune("flop-l0", density=0.1)


# --- multiply-accumulates


def macs_of(model):
    match = find_layers(model, embeddings=True)
    inputs = {"ids": ids(4, 6)}
    positions = positions_per_token(model, match.multiplying, inputs, 24)
    return Macs(positions, positions_per_token(model, match.embeddings, inputs, 24))


def test_both_ends_of_a_tied_table_are_counted():
    model = tagger()
    currency = macs_of(model)
    assert currency.positions == {"table": 1.0, "hidden": 1.0}
    assert currency.lookups == {"table": 1.0}
    cost = currency.cost("table", LayerShape(WIDTH, ROWS))
    assert cost == EmbeddingMacs(LayerShape(WIDTH, ROWS), 1.0, 1.0)
    assert cost.dense_cost == TABLE
    for rank in range(1, WIDTH + 1):
        by_hand = rank * WIDTH + (ROWS * rank + rank * WIDTH)
        assert cost.cost(rank) == min(TABLE, by_hand)
        kept = torch.tensor(float(rank), requires_grad=True)
        charge = cost.charge(kept)
        charge.backward()
        assert charge.item() == cost.expected(rank) == min(TABLE, by_hand)
        assert kept.grad.item() == cost.unit_cost


@pytest.mark.parametrize("density", [0.4, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["fixed greedy svd", "fixed uniform svd", "flop-l0"])
def test_a_budget_of_macs_is_one_that_torch_counts(kind, density):
    model, inputs = tagger(), {"ids": ids(4, 6)}
    dense = macs_per_token(model, inputs, 24)
    assert dense == TABLE + HIDDEN
    pruner = Pruner(model, METHODS[kind](density=density), embeddings=True, currency=macs_of(model))
    projection = pruner.project()
    counted = macs_per_token(pruner.finish(projection), inputs, 24)
    assert counted == pytest.approx(projection.density * dense)
    assert counted <= density * dense


def test_what_is_charged_as_dense_is_stored_dense():
    """Rank 6 has fewer parameters than the table, and more multiply-accumulates."""
    model = tagger()
    layer = Pruner(
        model, METHODS["fixed greedy svd"](density=1.0), embeddings=True, currency=macs_of(model)
    ).layers["table"]
    assert layer.shape.break_even_rank == 6
    assert layer.dense_from == 6  # 6 * 46 > 240
    keep = torch.arange(WIDTH) < 6
    assert type(layer.compact(keep)) is nn.Embedding
    assert type(layer.compact(torch.arange(WIDTH) < 5)) is LowRankEmbedding


def test_a_look_up_costs_nothing_dense_so_macs_cannot_pay_for_it():
    model = tagger(tied=False)
    with pytest.raises(LowRankError, match=r"'table': a budget in multiply-accumulates"):
        Pruner(model, METHODS["flop-l0"](density=0.5), embeddings=True, currency=macs_of(model))


def test_a_latency_budget_stores_dense_what_its_table_says_is_no_dearer():
    """Rank 3 of 4 is as slow as the dense layer, though it has fewer parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    table = TableCost((0.0, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0))
    pruner = Pruner(model, METHODS["fixed greedy svd"](density=1.0), currency=Latency({"0": table}))
    layer = pruner.layers["0"]
    assert layer.dense_from == 3 == layer.shape.break_even_rank
    assert type(layer.compact(torch.arange(8) < 3)) is nn.Linear
    assert type(layer.compact(torch.arange(8) < 2)) is LowRankLinear
