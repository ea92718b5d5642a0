"""What every method promises the pruner, over all of them."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from transformers.pytorch_utils import Conv1D

import lowrank
from lowrank import (
    Adaptive,
    Agp,
    DensityError,
    FixedRank,
    FlopAgp,
    FlopL0,
    LowRankError,
    LowRankLinear,
    NeuronL0,
    Pruner,
    SlicedLinear,
    Start,
)
from lowrank.counting import num_matrix_parameters
from lowrank.gate import Gate, HardConcreteGate, open_probability
from lowrank.linear import dense_weight
from lowrank.masked import MaskedLinear
from lowrank.pruned import PrunedLayer
from tests.lowrank import batch, mlp, relative_error
from tests.lowrank.every_method import (
    ADAPTIVE,
    FULL,
    GATED,
    GRADUAL,
    METHODS,
    NAMES,
    STEPS,
    TOTAL,
    TRUNCATING,
    assert_same,
    optimizer_of,
    prune,
    shut,
    silence,
    toy,
    toy_moments,
    train,
    trained,
)

every_method = pytest.mark.parametrize("kind", list(METHODS))


# --- insertion


@pytest.mark.parametrize("kind", list(FULL))
@torch.no_grad()
def test_insertion_preserves_the_function_in_evaluation(kind):
    dense = toy()
    x, _ = batch(rows=16, width=8, dtype=torch.float32)
    pruner = prune(kind)
    assert list(pruner.layers) == NAMES
    assert all(isinstance(layer, PrunedLayer) for layer in pruner.layers.values())
    assert not any(module.training for module in pruner.model.modules())
    assert relative_error(pruner.model(x), dense(x)) < 1e-5


@pytest.mark.parametrize("kind", [*FULL, *ADAPTIVE])
@torch.no_grad()
def test_at_full_density_every_layer_comes_back_as_it_was(kind):
    dense = toy()
    x, _ = batch(rows=16, width=8, dtype=torch.float32)
    pruner = prune(kind, density=1.0)
    assert relative_error(pruner.model(x), dense(x)) < 1e-5
    small = pruner.finish()
    assert [type(module) for module in small] == [type(module) for module in dense]
    assert relative_error(small(x), dense(x)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "density", "ranks"),
    [
        # twice the uniform rank, which is the density times 4.8, 6, 4.8
        ("adaptive svd", 0.2, [2, 3, 2]),
        ("adaptive svd", 0.3, [3, 4, 3]),
        # the largest rank that is smaller than dense
        ("adaptive svd", 0.5, [4, 5, 4]),
        ("flop-l0 faithful", 0.5, [4, 5, 4]),
    ],
)
@torch.no_grad()
def test_a_start_below_full_rank_is_the_truncated_svd(kind, density, ranks):
    dense = toy()
    pruner = prune(kind, density=density)
    assert [layer.num_components for layer in pruner.layers.values()] == ranks
    for name, layer in pruner.layers.items():
        wanted = truncated(dense_weight(dense.get_submodule(name)).double(), layer.num_components)
        effective = (layer.up.double() * layer.gate.value()) @ layer.down.double()
        assert relative_error(effective, wanted) < 1e-6


def truncated(weight, rank):
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@torch.no_grad()
def test_a_covariance_start_below_full_rank_leaves_the_mean_output_as_it_was():
    dense, moments = toy(), toy_moments()
    pruner = prune("adaptive", density=0.3)
    for name, layer in pruner.layers.items():
        linear, seen = dense.get_submodule(name), moments[name]
        if linear.bias is None:
            gram, mean = seen.second_moment, torch.zeros_like(seen.mean)
        else:
            gram, mean = seen.covariance, seen.mean
        values, vectors = torch.linalg.eigh(gram)
        root = (vectors * values.clamp(min=1e-12).sqrt()) @ vectors.t()
        weight = dense_weight(linear).double()
        best = truncated(weight @ root, layer.num_components) @ torch.linalg.inv(root)
        x = torch.randn(5, weight.shape[1])
        bias = 0 if linear.bias is None else linear.bias.double()
        wanted = x.double() @ best.t() + (weight - best) @ mean + bias
        assert relative_error(layer(x), wanted) < 1e-3
        if linear.bias is not None:
            assert relative_error(layer(mean.float()), weight @ mean + bias) < 1e-5


@pytest.mark.parametrize("kind", list(ADAPTIVE))
@torch.no_grad()
def test_what_a_truncated_start_can_hold_it_preserves(kind):
    dense = toy()
    for name in NAMES:
        weight = dense.get_submodule(name).weight
        weight.copy_(truncated(weight, 4))
    x, _ = batch(rows=16, width=8, dtype=torch.float32)
    pruner = prune(kind, model=copy.deepcopy(dense))
    assert list(pruner.layers) == NAMES
    assert all(isinstance(layer, PrunedLayer) for layer in pruner.layers.values())
    assert not any(module.training for module in pruner.model.modules())
    assert relative_error(pruner.model(x), dense(x)) < 1e-5


def test_a_start_from_moments_needs_them():
    with pytest.raises(LowRankError, match=r"layer '0': a covariance start needs the moments"):
        Pruner(toy(), Adaptive(density=0.5))


def test_a_failed_insertion_leaves_weights_and_biases_as_they_were():
    model = toy()
    before = copy.deepcopy(model.state_dict())
    moments = toy_moments()
    start = Start(kind="covariance", rank="break-even")
    with pytest.raises(LowRankError, match="layer '4'"):
        Pruner(
            model,
            FlopL0(density=0.5, start=start),
            moments={name: moments[name] for name in ("0", "2")},
        )
    assert_same(model.state_dict(), before)


# --- training


@every_method
def test_every_step_reaches_every_parameter_with_a_finite_gradient(kind):
    pruner = prune(kind)
    optimizer = optimizer_of(pruner)
    pruner.model.train()
    for step in range(STEPS + 3):  # also past the end of the gated phase
        x, y = batch(rows=16, width=8, seed=step, dtype=torch.float32)
        penalty = torch.as_tensor(pruner.penalty())
        assert penalty.shape == ()
        assert torch.isfinite(penalty)
        assert 0 < pruner.expected_density().item() <= 1 + 1e-6
        assert pruner.method.density <= pruner.target <= 1
        ((pruner.model(x) - y).square().mean() + penalty).backward()
        for name, parameter in pruner.model.named_parameters():
            # a parameter without a gradient stops data-parallel training
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()


@every_method
def test_the_groups_hold_every_parameter_once_and_do_not_decay_gates(kind):
    pruner = prune(kind)
    groups = pruner.parameter_groups(1e-3, weight_decay=0.2)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    own = {id(parameter) for parameter in pruner.control.own_parameters}
    assert bool(own) == (kind in ADAPTIVE)
    assert sorted(listed) == sorted(id(p) for p in pruner.model.parameters() if id(p) not in own)
    gates = {id(p) for m in pruner.model.modules() if isinstance(m, Gate) for p in m.parameters()}
    gates |= {id(p) for name, p in pruner.model.named_parameters() if name.endswith("score")}
    for group in groups:
        for parameter in group["params"]:
            if group["weight_decay"] > 0:
                assert id(parameter) not in gates
                assert parameter.ndim == 2


@pytest.mark.parametrize("kind", [*GATED, "flop-l0 faithful"])
def test_too_large_a_model_is_pulled_shut_at_every_gate(kind):
    pruner = prune(kind, anneal_fraction=0.0)
    for _ in range(3):
        pruner.step()
    # the budget's part: there may be a further penalty, on undecided gates
    control = pruner.control
    control.lagrangian.penalty(control.expected_density(), control.target).backward()
    for layer in pruner.layers.values():
        assert (layer.gate.parameter.grad > 0).all()


@pytest.mark.parametrize("kind", list(GRADUAL))
def test_masks_follow_the_cubic_schedule(kind):
    pruner = prune(kind, anneal_fraction=0.5)
    for step in range(1, STEPS + 1):
        pruner.step()
        target = 0.5 + 0.5 * max(0.0, 1 - step / 6) ** 3
        assert pruner.target == pytest.approx(target)
        density = pruner.expected_density().item()
        assert target - 0.25 < density <= target + 1e-6
        masks = [
            layer.mask if isinstance(layer, MaskedLinear) else layer.gate.mask
            for layer in pruner.layers.values()
        ]
        if "flop" not in kind:
            spent = sum(
                float(mask.sum()) * cost.unit_cost
                for mask, cost in zip(masks, pruner.control.costs.values(), strict=True)
            )
            assert spent / TOTAL == pytest.approx(density)


@pytest.mark.parametrize("kind", [kind for kind in GRADUAL if "movement" not in kind])
@pytest.mark.parametrize("steps", [7, 100, 101, 149])
def test_at_the_end_the_masks_are_the_projection(kind, steps):
    # whether or not the last step is one of the regular updates
    method = replace(METHODS[kind](density=0.5), gated_steps=steps)
    pruner = Pruner(toy(), method, moments=toy_moments() if method.needs_moments else None)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in pruner.model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        pruner.step()
    for name, keep in pruner.project().keep.items():
        layer = pruner.layers[name]
        mask = layer.mask if isinstance(layer, MaskedLinear) else layer.gate.mask
        assert torch.equal(mask.flatten().bool(), keep)


# --- draws


@every_method
@torch.no_grad()
def test_what_is_drawn_is_a_function_of_seed_and_step_alone(kind):
    x, _ = batch(rows=4, width=8, dtype=torch.float32)
    torch.manual_seed(1)
    first = prune(kind)
    torch.manual_seed(2)
    second, other = prune(kind), prune(kind, seed=12)
    stochastic = isinstance(getattr(second.layers["0"], "gate", None), HardConcreteGate)
    before = None
    for _ in range(3):
        torch.manual_seed(2)
        state = torch.get_rng_state()
        outputs = [p.model.train()(x) for p in (first, second, other)]
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], first.model(x))  # a second use sees the same
        assert torch.equal(outputs[0], outputs[2]) != stochastic
        if stochastic and before is not None:
            assert not torch.equal(outputs[0], before)
        before = outputs[0]
        for pruner in (first, second, other):
            pruner.penalty()
            pruner.step()
        assert torch.equal(torch.get_rng_state(), state)


# --- resuming


@pytest.mark.parametrize("kind", list(GATED | TRUNCATING | GRADUAL))
@pytest.mark.parametrize("stop", [0, 5, STEPS])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(kind, stop):
    straight = trained(kind)

    first = prune(kind)
    optimizer = optimizer_of(first)
    train(first, optimizer, 0, stop)
    model_state = load_tensors(save_tensors(first.model.state_dict()))
    pruner_state = load_tensors(save_tensors(first.state_dict()))
    optimizer_state = copy.deepcopy(optimizer.state_dict())

    second = prune(kind, model=toy(seed=1))  # weights that the checkpoint must replace
    optimizer = optimizer_of(second)
    second.model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    second.load_state_dict(pruner_state)
    assert second.step_index == stop
    assert second.expected_density().item() == first.expected_density().item()
    train(second, optimizer, stop, STEPS)

    assert_same(second.model.state_dict(), straight.model.state_dict())
    assert_same(second.state_dict(), straight.state_dict())
    assert_same(second.finish().state_dict(), straight.finish().state_dict())


# --- finishing


@pytest.mark.parametrize("density", [0.35, 0.5, 0.8])
@every_method
def test_the_density_is_met_to_a_unit(kind, density):
    pruner = trained(kind, density=density)
    costs, projection = pruner.control.costs, pruner.project()
    counts = {name: int(keep.sum()) for name, keep in projection.keep.items()}
    spent = {name: costs[name].cost(count) for name, count in counts.items()}
    assert projection.density == pytest.approx(sum(spent.values()) / TOTAL, abs=1e-12)
    if kind == "flop-l0 faithful":
        for name, layer in pruner.layers.items():
            config = layer.gate.config
            expected = float(open_probability(layer.gate.parameter.detach(), config).sum())
            assert counts[name] == max(1, round(expected))
            assert projection.keep[name].shape == (layer.num_components,)
    else:
        assert projection.density <= density + 1e-12
        assert sum(spent.values()) <= density * TOTAL
        for name, layer in pruner.layers.items():
            room = density * TOTAL - sum(spent.values())
            if "tensor" in kind:
                room = density * costs[name].dense_cost - spent[name]
            units = len(projection.keep[name])
            if counts[name] < units and not isinstance(layer, MaskedLinear):
                assert costs[name].cost(counts[name] + 1) - spent[name] > room
            elif counts[name] < units:
                assert costs[name].unit_cost > room
    unstructured = kind.split()[-1] in ("weight", "block") or kind == "agp weight tensor"
    small = pruner.finish(projection)
    stored = num_matrix_parameters(small, NAMES, nonzero=unstructured)
    assert stored == pytest.approx(projection.density * TOTAL, abs=1e-9)


PLAIN = {nn.Sequential, nn.Tanh, nn.Linear, Conv1D, LowRankLinear, SlicedLinear}


@every_method
def test_finish_leaves_plain_modules_that_can_be_trained(kind):
    pruner = trained(kind)
    small = pruner.finish()
    assert small is pruner.model
    assert {type(module) for module in small.modules()} <= PLAIN
    assert all(parameter.requires_grad for parameter in small.parameters())
    x, y = batch(rows=16, width=8, dtype=torch.float32)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = (small(x) - y).square().mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in small.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@every_method
def test_compaction_computes_what_the_gates_kept(kind):
    x, _ = batch(rows=16, width=8, dtype=torch.float32)
    pruner = trained(kind)
    projection = pruner.project()
    shut(pruner, projection)
    wanted = pruner.model(x)
    small = pruner.finish(projection)
    assert relative_error(small(x), wanted) < 1e-5


@every_method
def test_what_is_exported_comes_back_bit_for_bit(kind, tmp_path):
    x, _ = batch(rows=16, width=8, dtype=torch.float32)
    small = trained(kind).finish()
    loaded = lowrank.load(toy(seed=9), lowrank.save(small, tmp_path)).eval()
    assert [type(module) for module in loaded] == [type(module) for module in small]
    assert_same(loaded.state_dict(), small.state_dict())
    assert torch.equal(loaded(x), small(x))


@every_method
def test_floors_are_kept_whatever_the_scores(kind):
    pruner = prune(kind, density=0.45, min_rank=2)
    silence(pruner, "0")
    if kind == "flop-l0 faithful":
        with torch.no_grad():
            pruner.layers["2"].gate.parameter.fill_(50)
    ranks = pruner.project().ranks
    assert min(ranks.values()) >= 2
    if "tensor" not in kind and "uniform" not in kind:
        assert ranks["0"] == 2 < max(ranks.values())


@pytest.mark.parametrize("kind", ["agp weight", "agp block", "movement weight", "movement block"])
@pytest.mark.parametrize("cast", ["float", "double"])
def test_zeros_stay_zero_under_a_decaying_optimizer(kind, cast):
    small = getattr(trained(kind).finish(), cast)()
    zeros = {name: p == 0 for name, p in small.named_parameters() if p.ndim > 1}
    assert sum(int(zero.sum()) for zero in zeros.values()) >= TOTAL // 2
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2, weight_decay=0.3)
    for step in range(20):
        x, y = batch(rows=16, width=8, seed=step, dtype=next(small.parameters()).dtype)
        (small(x) - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, zero in zeros.items():
        parameter = small.get_parameter(name)
        assert torch.equal(parameter == 0, zero)
        assert (parameter != before[name])[~zero].all()


def test_a_stopped_component_is_dropped_for_what_it_was_on_average():
    """Adaptive: the bias takes the mean of what the projection removes."""
    pruner = prune("adaptive")
    layer = pruner.layers["0"]
    layer.gate.place(0.5, 0.3)
    assert ((layer.gate.value() > 0.2) & (layer.gate.value() < 0.8)).all()
    keep = torch.arange(4) < 3
    up, down = layer.up.detach().double(), layer.down.detach().double()
    removed = (up * layer.gate.value())[:, ~keep] @ down[~keep]
    wanted = layer.bias.detach().double() + removed @ toy_moments()["0"].mean
    for _ in range(2):  # the layer itself stays as it is
        small = layer.compact(keep)
        torch.testing.assert_close(small.bias.double(), wanted, rtol=1e-6, atol=1e-6)


# --- configurations


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (FlopL0, {"density": 0.0}, "0 < density <= 1"),
        (Agp, {"density": 1.2}, "0 < density <= 1"),
        (FlopL0, {"gated_steps": 0}, "gated_steps >= 1"),
        (FlopAgp, {"gated_steps": 0}, "gated_steps >= 1"),
        (FixedRank, {"gated_steps": -1}, "gated_steps >= 0"),
        (NeuronL0, {"anneal_fraction": 1.1}, "0 <= anneal_fraction <= 1"),
        (Adaptive, {"gated_steps": 0}, "gated_steps >= 1"),
        (Adaptive, {"anneal_fraction": -0.1}, "0 <= anneal_fraction < 1"),
        (Adaptive, {"anneal_fraction": 1.0}, "0 <= anneal_fraction < 1 must hold, got 1.0"),
        (Adaptive, {"start": "head"}, "start must be one of .*'covariance'.*, got 'head'"),
        (Adaptive, {"floor_fraction": -1.0}, "0 <= floor_fraction <= 1 must hold, got -1.0"),
        (Adaptive, {"start_excess": math.inf}, "start_excess >= 1 must hold, got inf"),
        (FixedRank, {"allocation": "head"}, "allocation must be one of .*'greedy'.*, got 'head'"),
        (FlopAgp, {"scope": "head"}, "scope must be one of .*'tensor'.*, got 'head'"),
        (Adaptive, {"gate_lr": -0.1}, "gate_lr >= 0"),
        (Adaptive, {"gate_lr": math.nan}, "gate_lr >= 0"),
        (Adaptive, {"start_excess": 0.9}, "start_excess >= 1"),
        (FlopAgp, {"anneal_fraction": 1.1}, "0 <= anneal_fraction <= 1"),
        (Agp, {"anneal_fraction": math.nan}, "0 <= anneal_fraction <= 1"),
        (Agp, {"granularity": "head"}, "granularity must be one of .*'weight'.*, got 'head'"),
        (Agp, {"block": 0}, "block >= 1"),
        (FlopL0, {"gate_lr": 0.0}, "gate_lr > 0"),
        (FixedRank, {"min_rank": 0}, "min_rank >= 1"),
    ],
)
def test_an_impossible_method_is_refused(method, arguments, message):
    with pytest.raises(LowRankError, match=message):
        method(**({"density": 0.5} | arguments))


@pytest.mark.parametrize("kind", ["flop-l0", "neuron-l0"])
def test_a_penalty_rate_of_zero_is_refused(kind):
    with pytest.raises(LowRankError, match="penalty learning rate > 0"):
        prune(kind, penalty_lr=0.0)


@pytest.mark.parametrize(("kind", "natural"), [("flop-l0", 30 / STEPS), ("neuron-l0", 2.5)])
def test_the_gate_rate_follows_the_steps_or_is_given(kind, natural):
    assert prune(kind).control.gate_lr == natural
    assert prune(kind, gate_lr=0.3).control.gate_lr == 0.3
    assert prune(kind, gate_lr=0.3).parameter_groups(1e-3)[-1]["lr"] == 0.3


@pytest.mark.parametrize("kind", ["flop-agp", "agp row"])
def test_a_matrix_that_is_too_small_for_the_density_by_itself_is_named(kind):
    method = METHODS[kind](density=0.2, scope="tensor", anneal_fraction=0.0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 2))
    with pytest.raises(DensityError, match=r"^layer '1': density >= .* must hold"):
        Pruner(model, method)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


def test_a_target_that_the_floors_do_not_allow_is_refused_before_the_model_is_touched():
    model = mlp()
    with pytest.raises(DensityError, match="must hold to keep"):
        Pruner(model, FixedRank(density=0.3, min_rank=3, start=Start()))
    assert type(model[0]) is nn.Linear
