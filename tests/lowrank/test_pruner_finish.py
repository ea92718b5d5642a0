"""From the gated model to the compacted one."""

from __future__ import annotations

import copy

import pytest
import torch

from lowrank import FlopL0, GatedLinear, LowRankError, LowRankLinear, Pruner
from lowrank.counting import num_matrix_parameters, num_parameters
from lowrank.gate import HardConcreteGate
from tests.lowrank import mlp, relative_error, scramble_gates, tiny_bert, tiny_gpt2, token_ids

HALF = FlopL0(density=0.5, gated_steps=8, anneal_fraction=0.5)


def zero_dropped(pruner, projection):
    """The gated model with the components zeroed that the projection leaves out."""
    gated = copy.deepcopy(pruner.model).eval()
    layers = [m for m in gated.modules() if isinstance(m, GatedLinear)]
    with torch.no_grad():
        for layer, mask in zip(layers, projection.keep.values(), strict=True):
            layer.up[:, ~mask] = 0
    return gated


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_bert])
@pytest.mark.parametrize("density", [0.3, 0.7])
@torch.no_grad()
def test_finish_computes_what_the_gated_model_did_without_the_dropped(make, density):
    pruner = Pruner(make(), FlopL0(density=density))
    scramble_gates(pruner)
    names, shapes, ids = list(pruner.layers), pruner.shapes, token_ids()
    projection = pruner.project()
    assert min(projection.ranks.values()) < max(projection.ranks.values())
    wanted = zero_dropped(pruner, projection)(input_ids=ids).logits
    small = pruner.finish(projection)
    assert relative_error(small(input_ids=ids).logits, wanted) < 2e-5
    # exactly the budget, to a component
    stored = num_matrix_parameters(small, names)
    total = sum(shape.num_dense for shape in shapes.values())
    assert stored / total == projection.density <= density
    for name, rank in projection.ranks.items():
        shape = shapes[name]
        if rank < shape.full_rank:
            cost = shape.num_parameters(rank + 1) - shape.num_parameters(rank)
            assert stored + cost > density * total
            assert small.get_submodule(name).rank == rank


@torch.no_grad()
def test_finish_goes_back_to_conv1d_where_a_layer_stays_whole():
    model, ids = tiny_gpt2(), token_ids()
    wanted, size = model(input_ids=ids).logits, num_parameters(model)
    classes = {name: type(module) for name, module in model.named_modules()}
    small = Pruner(model, FlopL0(density=1.0)).finish()
    assert {name: type(module) for name, module in small.named_modules()} == classes
    assert num_parameters(small) == size
    assert relative_error(small(input_ids=ids).logits, wanted) < 1e-5


def test_finish_projects_by_itself_and_keeps_the_final_target_whatever_the_step():
    first, second = Pruner(mlp(), HALF), Pruner(mlp(), HALF)
    for pruner in (first, second):
        scramble_gates(pruner)
    projection = first.project()  # step 0, where the schedule's target is still 1
    assert projection.density <= 0.5
    explicit, implicit = first.finish(projection), second.finish()
    for name, value in explicit.state_dict().items():
        assert torch.equal(implicit.state_dict()[name], value)


def test_projecting_changes_nothing():
    pruner = Pruner(mlp(), HALF)
    before = copy.deepcopy(pruner.model.state_dict())
    pruner.project()
    assert all(isinstance(layer, GatedLinear) for layer in pruner.layers.values())
    for name, value in pruner.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_nothing_of_the_gates_is_left_after_finish():
    pruner = Pruner(mlp(), HALF)
    scramble_gates(pruner)
    small = pruner.finish()
    assert small is pruner.model
    assert not any(isinstance(m, GatedLinear | HardConcreteGate) for m in small.modules())
    assert any(isinstance(m, LowRankLinear) for m in small.modules())
    assert pruner.layers == {}


def test_finish_keeps_mode_and_dtype():
    pruner = Pruner(mlp().bfloat16().train(), HALF)
    scramble_gates(pruner)
    small = pruner.finish()
    assert all(module.training for module in small.modules())
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}


def test_a_minimum_rank_is_kept():
    pruner = Pruner(mlp(), FlopL0(density=0.6, min_rank=3))
    scramble_gates(pruner)
    with torch.no_grad():
        pruner.layers["0"].gate.log_alpha.fill_(-50)
    assert pruner.project().ranks["0"] == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gates_that_are_not_finite_are_named(value):
    pruner = Pruner(mlp(), HALF)
    with torch.no_grad():
        for name in ("0", "4"):
            pruner.layers[name].gate.log_alpha[2] = value
    with pytest.raises(LowRankError, match=r"gates are not finite, training diverged: 0, 4$"):
        pruner.finish()


# --- end to end


def causal_batch():
    return {"input_ids": token_ids(), "labels": token_ids()}


def classifier_batch():
    return {"input_ids": token_ids(), "labels": torch.tensor([0, 1, 2])}


@pytest.mark.parametrize(
    ("make", "batch", "include", "num_layers"),
    [
        (tiny_gpt2, causal_batch, "transformer.h.*", 8),
        (tiny_bert, classifier_batch, "bert.encoder.*", 12),
    ],
)
def test_a_transformer_is_trained_pruned_and_fine_tuned(make, batch, include, num_layers):
    model, inputs = make().train(), batch()
    method = FlopL0(density=0.5, gated_steps=60, anneal_fraction=2 / 3, penalty_lr=1.0)
    pruner = Pruner(model, method, include=[include])
    names, total = list(pruner.layers), pruner.num_dense
    assert len(names) == num_layers
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-3))
    for _ in range(method.gated_steps):
        (model(**inputs).loss + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    assert pruner.expected_density().item() < 0.8

    small = pruner.finish()
    assert num_matrix_parameters(small, names) <= 0.5 * total
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = small(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_finished_pruner_says_so():
    pruner = Pruner(mlp(), FlopL0(density=0.5))
    pruner.finish()
    for call in (pruner.penalty, pruner.step, pruner.finish):
        with pytest.raises(LowRankError, match="finished"):
            call()
