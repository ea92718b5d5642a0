from __future__ import annotations

import copy
import logging

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from lowrank import (
    DensityError,
    FlopL0,
    GatedLinear,
    LowRankError,
    LowRankLinear,
    Pruner,
)
from lowrank.counting import num_matrix_parameters, num_parameters
from lowrank.gate import NOISE_EPS, HardConcreteGate
from tests.lowrank import mlp, relative_error, scramble_gates, tiny_bert, tiny_gpt2, token_ids

HALF = FlopL0(density=0.5, anneal_steps=4, hold_steps=4)


def noises(pruner):
    return torch.cat([layer.gate.noise for layer in pruner.layers.values()])


def batch(rows=8, width=12, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=dtype)
    return x, torch.randn(rows, width, generator=generator, dtype=dtype)


def violating(pruner):
    """Multipliers off zero and gates half open: every part of the gradient counts."""
    scramble_gates(pruner)
    pruner.load_state_dict(
        {
            "lagrangian.lambda": torch.tensor([0.7, 3.0]),
            "lagrangian.exp_avg": torch.tensor([0.1, 0.01]),
            "lagrangian.exp_avg_sq": torch.tensor([0.01, 0.0001]),
            "lagrangian.step": torch.tensor(5.0),
            "step_index": torch.tensor(3),
        }
    )
    return pruner


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


# --- noise


def test_noise_depends_on_seed_and_step_alone():
    torch.manual_seed(1)
    first = Pruner(mlp(0), HALF, seed=5)
    torch.manual_seed(2)
    second = Pruner(mlp(9), HALF, seed=5)  # other weights, another global generator
    for _ in range(3):
        assert torch.equal(noises(first), noises(second))
        first.step()
        second.step()
    resumed = Pruner(mlp(0), HALF, seed=5)
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(noises(resumed), noises(first))


def test_noise_differs_between_seeds_steps_and_layers():
    pruner, other = Pruner(mlp(), HALF, seed=5), Pruner(mlp(), HALF, seed=6)
    seen = [noises(pruner), noises(other)]
    for _ in range(3):
        pruner.step()
        seen.append(noises(pruner))
    for number, noise in enumerate(seen):
        layers = noise.view(3, -1)
        assert not (layers[0] == layers[1]).any()
        assert not any((noise == later).any() for later in seen[number + 1 :])
        assert noise.min() >= NOISE_EPS
        assert noise.max() <= 1 - NOISE_EPS


def test_noise_leaves_the_global_generator_alone():
    pruner = Pruner(mlp(), HALF)
    state = torch.get_rng_state()
    pruner.step()
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_uniform():
    pruner = Pruner(mlp(width=64), HALF)
    seen = []
    for _ in range(30):
        seen.append(noises(pruner))
        pruner.step()
    values = torch.cat(seen).sort().values
    ideal = torch.linspace(0, 1, len(values))
    assert (values - ideal).abs().max() < 1.63 / len(values) ** 0.5  # Kolmogorov, 1%


# --- one gradient, however the batch is cut


@pytest.mark.parametrize("parts", [2, 4])
def test_shards_and_micro_batches_give_the_gradient_of_the_whole_batch(parts):
    x, y = batch()
    whole = violating(Pruner(mlp().double(), HALF, seed=3))
    ((whole.model(x) - y).square().mean() + whole.penalty()).backward()
    wanted = gradients(whole.model)

    # data parallel: each worker its own pruner and the whole penalty, gradients averaged
    averaged = {name: torch.zeros_like(grad) for name, grad in wanted.items()}
    for part in range(parts):
        worker = violating(Pruner(mlp().double(), HALF, seed=3))
        shard = slice(part * 8 // parts, (part + 1) * 8 // parts)
        ((worker.model(x[shard]) - y[shard]).square().mean() + worker.penalty()).backward()
        for name, grad in gradients(worker.model).items():
            averaged[name] += grad / parts

    # accumulation: one pruner, a part of the penalty each time
    one = violating(Pruner(mlp().double(), HALF, seed=3))
    for part in range(parts):
        shard = slice(part * 8 // parts, (part + 1) * 8 // parts)
        loss = (one.model(x[shard]) - y[shard]).square().mean() + one.penalty()
        (loss / parts).backward()
    accumulated = gradients(one.model)

    for name, grad in wanted.items():
        assert grad.abs().max() > 0
        tolerance = 1e-12 if grad.dtype == torch.float64 else 2e-6
        for other in (averaged, accumulated):
            torch.testing.assert_close(other[name], grad, rtol=tolerance, atol=tolerance)


def test_without_shared_noise_the_gradients_would_differ():
    x, y = batch()
    grads = []
    for seed in (3, 4):
        pruner = violating(Pruner(mlp().double(), HALF, seed=seed))
        (pruner.model(x) - y).square().mean().backward()
        grads.append(gradients(pruner.model)["0.up"])
    assert relative_error(grads[1], grads[0]) > 0.01


# --- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_penalty_and_gates_in_float32(dtype):
    pruner = violating(Pruner(mlp(), HALF))
    wanted = pruner.penalty().item()
    x, y = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        output = pruner.model(x)
        penalty = pruner.penalty()
        assert pruner.expected_density().dtype == torch.float32
        loss = (output.float() - y).square().mean() + penalty
    assert output.dtype == dtype
    assert penalty.dtype == torch.float32
    assert penalty.item() == wanted
    loss.backward()
    for layer in pruner.layers.values():
        assert layer.gate.log_alpha.grad.dtype == torch.float32
        assert torch.isfinite(layer.gate.log_alpha.grad).all()


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_casting_the_model_does_not_change_the_density(cast):
    pruner = violating(Pruner(mlp(), HALF))
    wanted = pruner.expected_density().item()
    getattr(pruner.model, cast)()
    assert pruner.expected_density().item() == wanted
    pruner.step()
    assert all(layer.gate.noise.dtype == torch.float32 for layer in pruner.layers.values())


# --- the schedule of one run


def test_at_insertion_the_expected_density_is_one_and_nothing_is_charged():
    pruner = Pruner(mlp(), FlopL0(density=0.3))
    assert pruner.num_dense == 3 * 144
    assert pruner.expected_density().item() == 1
    assert pruner.target == 1
    assert pruner.penalty().item() == 0


def test_the_target_falls_linearly_then_holds():
    pruner = Pruner(mlp(), FlopL0(density=0.2, anneal_steps=4, hold_steps=2))
    targets = []
    for _ in range(6):
        targets.append(pruner.target)
        pruner.step()
    assert targets == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_a_step_compares_the_present_density_with_the_present_target():
    pruner = Pruner(mlp(), FlopL0(density=0.2, anneal_steps=4, hold_steps=2, penalty_lr=0.5))
    pruner.step()  # target 1, density 1
    assert pruner.lagrangian.lambda_linear == 0
    pruner.step()  # target 0.8, density 1
    assert pruner.lagrangian.lambda_linear > 0
    assert pruner.lagrangian.lambda_quadratic > 0


def test_the_penalty_pulls_every_gate_shut_when_the_model_is_too_large():
    pruner = Pruner(mlp(), HALF)
    for _ in range(4):
        pruner.step()
    pruner.penalty().backward()
    for layer in pruner.layers.values():
        assert (layer.gate.log_alpha.grad > 0).all()  # descent lowers log_alpha
        assert layer.up.grad is None


def test_parameter_groups_hold_every_parameter_once():
    model = tiny_gpt2()
    pruner = Pruner(model, HALF)
    model.transformer.wpe.weight.requires_grad_(False)
    matrices, vectors, gates = pruner.parameter_groups(1e-3, weight_decay=0.2)
    listed = [id(p) for group in (matrices, vectors, gates) for p in group["params"]]
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(listed) == len(set(listed))
    assert set(listed) == wanted
    assert all(p.ndim == 2 for p in matrices["params"])
    assert all(p.ndim == 1 for p in vectors["params"])
    assert [id(p) for p in gates["params"]] == [
        id(layer.gate.log_alpha) for layer in pruner.layers.values()
    ]
    assert [group["weight_decay"] for group in (matrices, vectors, gates)] == [0.2, 0, 0]
    assert [group["lr"] for group in (matrices, vectors, gates)] == [1e-3, 1e-3, 30 / 8]
    torch.optim.AdamW([matrices, vectors, gates])


def test_the_gate_rate_can_be_given():
    assert FlopL0(density=0.5).resolved_gate_lr == 30 / 260
    assert FlopL0(density=0.5, gate_lr=0.3).resolved_gate_lr == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0.0}, "0 < density <= 1"),
        ({"density": 1.2}, "0 < density <= 1"),
        ({"anneal_steps": -1}, "anneal_steps >= 0"),
        ({"anneal_steps": 0, "hold_steps": 0}, "their sum >= 1"),
        ({"gate_lr": 0.0}, "gate_lr > 0"),
        ({"min_rank": 0}, "min_rank >= 1"),
    ],
)
def test_an_impossible_method_is_refused(arguments, message):
    with pytest.raises(LowRankError, match=message):
        FlopL0(**({"density": 0.5} | arguments))


def test_a_penalty_rate_of_zero_is_refused():
    with pytest.raises(LowRankError, match="penalty learning rate > 0"):
        Pruner(mlp(), FlopL0(density=0.5, penalty_lr=0.0))


def test_the_size_of_the_job_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="lowrank"):
        Pruner(mlp(), HALF, include=["0", "2"])
    assert "factorized 2 layers, 288 parameters" in caplog.text


# --- resuming


def train(pruner, optimizer, first, last):
    for step in range(first, last):
        x, y = batch(seed=step, dtype=torch.float32)
        loss = (pruner.model(x) - y).square().mean() + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()


def fresh_run(seed):
    # the same seed of the noise, but weights that the checkpoint must replace
    pruner = Pruner(mlp(seed), FlopL0(density=0.4, anneal_steps=6, hold_steps=6), seed=11)
    return pruner, torch.optim.AdamW(pruner.parameter_groups(1e-2))


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(stop):
    straight, optimizer = fresh_run(seed=0)
    train(straight, optimizer, 0, 12)

    first, optimizer = fresh_run(seed=0)
    train(first, optimizer, 0, stop)
    model_state = load(save(first.model.state_dict()))
    pruner_state = load(save(first.state_dict()))
    optimizer_state = copy.deepcopy(optimizer.state_dict())

    second, optimizer = fresh_run(seed=1)
    second.model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    second.load_state_dict(pruner_state)
    train(second, optimizer, stop, 12)

    assert second.step_index == straight.step_index == 12
    for name, value in straight.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    for name, value in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert torch.equal(noises(second), noises(straight))
    small, same = straight.finish().state_dict(), second.finish().state_dict()
    assert list(small) == list(same)
    assert all(torch.equal(small[name], same[name]) for name in small)


# --- finishing


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
    method = FlopL0(density=0.5, anneal_steps=40, hold_steps=20, penalty_lr=1.0)
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


def test_a_target_below_the_floor_is_refused_before_the_model_is_touched():
    model = mlp()
    before = [type(module) for module in model.modules()]
    with pytest.raises(DensityError, match=r"density >= 0.166667 must hold"):
        Pruner(model, FlopL0(density=0.1))
    assert [type(module) for module in model.modules()] == before


def test_a_finished_pruner_says_so():
    pruner = Pruner(nn.Sequential(nn.Linear(8, 8)), FlopL0(density=0.5))
    pruner.finish()
    for call in (pruner.penalty, pruner.step, pruner.finish):
        with pytest.raises(LowRankError, match="finished"):
            call()


def test_a_broken_weight_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(LowRankError, match="layer '1'"):
        Pruner(model, FlopL0(density=0.5))
