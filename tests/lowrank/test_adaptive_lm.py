"""The adaptive decoder as transformers sees it, and as it is pruned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from lowrank import (
    Adaptive,
    FlopL0,
    GateConfig,
    LowRankEmbedding,
    LowRankHead,
    Macs,
    Pruner,
    Start,
    factorize_rows,
    find_layers,
)
from lowrank.counting import macs_per_token, num_matrix_parameters, num_parameters
from lowrank.currency import positions_per_token
from lowrank.density import FactoredShape
from lowrank.export import num_stored_parameters
from lowrank.hf import load_pretrained, save_pretrained
from lowrank.manifest import read_manifest
from lowrank.models import register
from lowrank.moments import MomentSums, collect_moments
from lowrank.prunable import PrunableTable
from tests.lowrank import relative_error
from tests.lowrank.embeddings import counts_of
from tests.lowrank.every_method import METHODS, STEPS, optimizer_of, shut

TOKENS, WIDTH, CUTOFFS = 60, 16, [12, 30]
SIZES, DIMS = [12, 18, 30], [12, 8, 4]  # 16 / 2^i, and no more than the tokens
TAIL = "model.embed_tokens.clusters.2"
FACTORS = [kind for kind in METHODS if not kind.startswith(("agp", "movement", "neuron"))]
tied_or_not = pytest.mark.parametrize("tied", [True, False])


def config(**fields):
    register()
    return AutoConfig.for_model(
        "adaptive-decoder",
        **{
            "vocab_size": TOKENS,
            "cutoffs": CUTOFFS,
            "reduction": 2,
            "hidden_size": WIDTH,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "initializer_range": 0.4,
        }
        | fields,
    )


def make(tied=True, seed=0, **fields):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(tie_word_embeddings=tied, **fields)).eval()
    for head in model.softmax.clusters:
        if head.bias is not None:
            torch.nn.init.normal_(head.bias, std=0.5)
    return model


def tokens(rows=4, length=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TOKENS, (rows, length), generator=generator)


def logits(model, ids=None):
    with torch.no_grad():
        return model(input_ids=tokens() if ids is None else ids).logits


def pruner_of(model, method, seed=11):
    """With all that a start can know of the tables."""
    match = find_layers(model, embeddings=True)
    sums = collect_moments(model, match.multiplying, [{"input_ids": tokens(40)}])
    every = counts_of(TOKENS)
    counts = {
        name: every[table.first_token :][: len(table.weight)]
        for name, table in match.tables.items()
    }
    moments = {name: found.moments() for name, found in sums.items()}
    return Pruner(model, method, embeddings=True, seed=seed, moments=moments, counts=counts)


def train(pruner, optimizer, steps=STEPS):
    pruner.model.train()
    for step in range(steps):
        ids = tokens(6, seed=step)
        (pruner.model(ids, targets=ids.roll(-1, 1)).loss + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    pruner.model.eval()


# --- the dense model


@tied_or_not
def test_parameters_are_those_of_the_clusters_and_tied_ones_count_once(tied):
    model = make(tied)
    tables = sum((size + WIDTH) * dim for size, dim in zip(SIZES, DIMS, strict=True))
    blocks = sum(p.numel() for p in model.model.layers.parameters()) + WIDTH
    head = TOKENS + 2 * (WIDTH + 1)
    assert num_parameters(model) == blocks + head + tables * (1 if tied else 2)
    assert model.get_input_embeddings() is model.model.embed_tokens


def test_labels_are_shifted_and_targets_are_not():
    model, ids = make(), tokens()
    wanted = F.cross_entropy(logits(model)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    output = model(ids, labels=ids)
    assert output.logits.shape == (4, 9, TOKENS)
    assert output.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    output = model(ids, targets=targets)
    assert output.logits is None
    assert output.loss.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("cutoffs", [None, [], [7]])
def test_any_number_of_clusters(cutoffs):
    model = make(cutoffs=cutoffs)
    assert len(model.softmax.clusters) == 1 + len(cutoffs or [])
    torch.testing.assert_close(logits(model).exp().sum(-1), torch.ones(4, 9))
    model(tokens(), targets=tokens()).loss.backward()


@pytest.mark.parametrize("cutoffs", [[0], [5, 5], [9, 4], [60], [70]])
def test_cutoffs_that_do_not_rise_within_the_vocabulary_are_refused(cutoffs):
    with pytest.raises(Exception, match="0 < cutoffs, rising, < vocab_size must hold"):
        config(cutoffs=cutoffs)


@tied_or_not
def test_transformers_saves_and_loads_it(tied, tmp_path):
    model = make(tied)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert num_parameters(loaded) == num_parameters(model)


def test_a_vocabulary_that_is_sorted_cannot_be_resized():
    with pytest.raises(NotImplementedError, match="sorted by frequency"):
        make().resize_token_embeddings(70)


def test_hidden_states_are_given_on_demand():
    states = make()(tokens(), output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(4, 9, WIDTH)] * 3


# --- pruned


@tied_or_not
def test_every_cluster_is_a_layer_and_costs_its_factors(tied):
    pruner = Pruner(make(tied), FlopL0(density=0.5), embeddings=True)
    names = [f"model.embed_tokens.clusters.{i}" for i in range(3)]
    names += [] if tied else [f"softmax.clusters.{i}" for i in range(3)]
    assert [name for name in pruner.layers if "clusters" in name] == names
    for name in names:
        number = int(name[-1])
        shape = pruner.shapes[name]
        assert shape == FactoredShape(WIDTH, SIZES[number], DIMS[number])
        assert shape.num_dense == (SIZES[number] + WIDTH) * DIMS[number]
        assert pruner.control.costs[name].unit_cost == SIZES[number] + WIDTH
        assert pruner.control.floors[name] == 0
    assert {n for n, f in pruner.control.floors.items() if f == 0} == set(names)
    assert not [n for n in find_layers(make(tied)).layers if "clusters" in n]


@tied_or_not
@pytest.mark.parametrize("start", ["svd", "covariance"])
def test_at_full_rank_nothing_changes(tied, start):
    dense = make(tied)
    pruner = pruner_of(make(tied), FlopL0(density=1.0, start=Start(kind=start)))
    assert relative_error(logits(pruner.model), logits(dense)) < 1e-4
    small = pruner.finish()
    assert relative_error(logits(small), logits(dense)) < 1e-4
    assert num_parameters(small) == num_parameters(dense)


@pytest.mark.parametrize("with_metric", [False, True])
def test_a_start_is_the_best_product_of_that_rank_though_the_matrix_is_never_formed(with_metric):
    """Against the factorization of the whole matrix."""
    torch.manual_seed(3)
    table = LowRankEmbedding(30, WIDTH, 6).double()
    counts, rows = counts_of(30), torch.randn(200, WIDTH).double() * torch.linspace(0.1, 2, WIDTH)
    found = MomentSums(WIDTH)
    found.add(rows)
    moments = found.moments() if with_metric else None
    factors, _ = PrunableTable(table, (), counts, moments).factorize(3, weighted=True)
    metric = moments.second_moment if with_metric else None
    whole = factorize_rows(table.weight @ table.projection, counts, 3, second_moment=metric)
    assert relative_error(factors.up @ factors.down, whole.up @ whole.down) < 1e-3
    assert factors.nmse == pytest.approx(whole.nmse, rel=1e-3)


@pytest.mark.parametrize("kind", FACTORS)
@tied_or_not
@pytest.mark.parametrize("density", [0.25, 0.6])
def test_every_method_meets_the_density_with_clusters_in_the_pool(kind, tied, density, tmp_path):
    pruner = pruner_of(make(tied), METHODS[kind](density=density))
    train(pruner, optimizer_of(pruner))
    names, dense = list(pruner.shapes), pruner.num_dense
    projection = pruner.project()
    if "faithful" not in kind:
        assert projection.density <= density
    shut(pruner, projection)
    wanted = logits(pruner.model)
    small = pruner.finish(projection).eval()
    assert relative_error(logits(small), wanted) < 1e-4
    kept = num_matrix_parameters(small, names)
    assert kept == pytest.approx(projection.density * dense)
    if tied:
        for table, head in zip(
            small.model.embed_tokens.clusters, small.softmax.clusters, strict=True
        ):
            assert (type(table), type(head)) == (LowRankEmbedding, LowRankHead)
            assert head.weight is table.weight
            assert head.projection is table.projection
    save_pretrained(small, tmp_path, "AutoModelForCausalLM")
    loaded = load_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(small))
    assert num_stored_parameters(tmp_path) == num_parameters(loaded) == num_parameters(small)


HALF_OPEN = FlopL0(density=0.5, gate=GateConfig(init_open_prob=0.6))


def test_both_ends_of_every_cluster_share_one_sample():
    pruner = Pruner(make(), HALF_OPEN, embeddings=True)
    model = pruner.model.train()
    for number, head in enumerate(model.softmax.clusters):
        table = pruner.layers[f"model.embed_tokens.clusters.{number}"]
        assert head.gate is table.gate
        before = table.gate().detach()
        assert torch.equal(before, head.gate())
        pruner.step()
        assert not torch.equal(before, head.gate())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_clusters_that_a_batch_lacks_keep_their_gates_in_the_graph(number):
    pruner = Pruner(make(), HALF_OPEN, embeddings=True)
    edges = (0, *CUTOFFS, TOKENS)
    ids = edges[number] + tokens() % SIZES[number]
    pruner.model.train()(ids, targets=ids).loss.backward()
    for name, parameter in pruner.model.named_parameters():
        assert parameter.grad is not None, name
    for other, size in enumerate(DIMS):
        gate = pruner.layers[f"model.embed_tokens.clusters.{other}"].gate.parameter
        assert gate.grad.shape == (size,)
        assert bool(gate.grad.any()) == (other in (0, number))


@tied_or_not
def test_a_dead_cluster_costs_nothing_and_keeps_its_words_apart(tied, tmp_path):
    pruner = Pruner(make(tied), FlopL0(density=0.5), embeddings=True)
    dead = [TAIL] if tied else [TAIL, "softmax.clusters.2"]
    for name, layer in pruner.layers.items():
        with torch.no_grad():
            layer.gate.parameter.fill_(-20 if name in dead else 1)
    small = pruner.finish().eval()
    save_pretrained(small, tmp_path, "AutoModelForCausalLM")
    model = load_pretrained(tmp_path)
    for name in dead:
        assert num_matrix_parameters(model, [name]) == 0
        assert read_manifest(tmp_path)["layers"][name]["rank"] == 0
    found = logits(model)
    assert torch.equal(found, logits(small))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4, 9))
    within = found[..., 30:] - found[..., 30:].logsumexp(-1, keepdim=True)
    wanted = F.log_softmax(make(tied).softmax.clusters[2].bias, 0)
    torch.testing.assert_close(within, wanted.expand_as(within), rtol=1e-4, atol=1e-5)
    # what is left of it still trains
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    model.train()(tokens(), targets=tokens()).loss.backward()
    optimizer.step()
    bias = "softmax.clusters.2.bias"
    assert not torch.equal(model.state_dict()[bias], before[bias])
    # and is not offered for pruning again
    assert TAIL not in find_layers(model, embeddings=True).layers


@pytest.mark.parametrize("kind", ["dense", "small"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_the_repeated_choice_of_the_best(kind, use_cache):
    model = make()
    if kind == "small":
        model = pruner_of(model, Adaptive(density=0.4)).finish().eval()
    ids = tokens(1, 4)
    options = {"do_sample": False, "pad_token_id": 1, "use_cache": use_cache}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, **options)
    for _ in range(6):
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, ids)


def test_macs_of_clusters_are_those_that_torch_counts():
    model, inputs = make(), {"input_ids": tokens(8, 16)}
    match = find_layers(model, embeddings=True)
    positions = positions_per_token(model, match.multiplying, inputs, 128)
    lookups = positions_per_token(model, match.embeddings, inputs, 128)
    assert sum(lookups.values()) == pytest.approx(1.0)
    dense = macs_per_token(model, inputs, 128)
    pruner = Pruner(
        model,
        METHODS["fixed greedy svd"](density=0.5),
        embeddings=True,
        currency=Macs(positions, lookups),
    )
    total = sum(cost.dense_cost for cost in pruner.control.costs.values())
    projection = pruner.project()
    counted = macs_per_token(pruner.finish(projection), inputs, 128)
    assert dense - counted == pytest.approx((1 - projection.density) * total)
    assert projection.density <= 0.5
