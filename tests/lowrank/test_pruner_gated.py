"""The gated phase: noise, gradients, precision, schedule."""

from __future__ import annotations

import pytest
import torch

from lowrank import FlopL0, Pruner
from lowrank.gate import NOISE_EPS
from tests.lowrank import batch, mlp, noises, relative_error, violating

HALF = FlopL0(density=0.5, gated_steps=8, anneal_fraction=0.5)


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
    pruner = Pruner(mlp(), FlopL0(density=0.2, gated_steps=6, anneal_fraction=2 / 3))
    targets = []
    for _ in range(6):
        targets.append(pruner.target)
        pruner.step()
    assert targets == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_a_step_compares_the_present_density_with_the_present_target():
    pruner = Pruner(
        mlp(), FlopL0(density=0.2, gated_steps=6, anneal_fraction=2 / 3, penalty_lr=0.5)
    )
    pruner.step()  # target 1, density 1
    assert pruner.control.lagrangian.lambda_linear == 0
    pruner.step()  # target 0.8, density 1
    assert pruner.control.lagrangian.lambda_linear > 0
    assert pruner.control.lagrangian.lambda_quadratic > 0


def test_the_penalty_pulls_every_gate_shut_when_the_model_is_too_large():
    pruner = Pruner(mlp(), HALF)
    for _ in range(4):
        pruner.step()
    pruner.penalty().backward()
    for layer in pruner.layers.values():
        assert (layer.gate.log_alpha.grad > 0).all()  # descent lowers log_alpha
        assert layer.up.grad is None
