from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit, logit
from torch import nn

from lowrank import GateConfig, HardConcreteGate, LowRankError
from lowrank.gate import (
    NOISE_EPS,
    expected_value,
    open_probability,
    priced_open_probability,
    sample,
)

TEMPERATURES = [1 / 3, 2 / 3, 1.0, 2.0]
STRETCHES = [(-0.1, 1.1), (-0.05, 1.3), (-0.5, 1.2)]
LOG_ALPHAS = [-8.0, -3.0, -1.0, 0.0, 0.7, 2.0, 4.5, 9.0]

configs = pytest.mark.parametrize(
    "config",
    [
        GateConfig(temperature=temperature, stretch_low=low, stretch_high=high)
        for temperature in TEMPERATURES
        for low, high in STRETCHES
    ],
    ids=lambda c: f"{c.temperature:.2f}_{c.stretch_low}_{c.stretch_high}",
)


def stretched(u, log_alpha, config):
    """Before clamping; float64, straight from the paper's definition."""
    s = expit((logit(u) + log_alpha) / config.temperature)
    return s * (config.stretch_high - config.stretch_low) + config.stretch_low


def threshold(value, log_alpha, config):
    """The noise u at which the stretched sample passes a value."""
    s = (value - config.stretch_low) / (config.stretch_high - config.stretch_low)
    return float(expit(config.temperature * logit(s) - log_alpha))


def mean_by_integration(log_alpha, config):
    """E[z] = int_0^1 z(u) du: another integral than the library's, over the noise."""
    shut, full = threshold(0, log_alpha, config), threshold(1, log_alpha, config)
    middle, _ = quad(
        stretched, shut, full, args=(log_alpha, config), epsabs=1e-12, epsrel=1e-12, limit=300
    )
    return middle + (1 - full)


@configs
def test_the_expected_value_is_the_integral_over_the_noise(config):
    log_alpha = torch.tensor(LOG_ALPHAS, dtype=torch.float64)
    wanted = [mean_by_integration(value, config) for value in LOG_ALPHAS]
    actual = expected_value(log_alpha, config)
    np.testing.assert_allclose(actual.numpy(), wanted, rtol=0, atol=1e-9)
    single = expected_value(log_alpha.float(), config)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 4.0])
def test_the_stated_quadrature_error_holds_at_the_ends_of_its_range(temperature):
    config = GateConfig(temperature=temperature)
    log_alpha = np.linspace(-12, 12, 25)
    wanted = [mean_by_integration(value, config) for value in log_alpha]
    actual = expected_value(torch.from_numpy(log_alpha), config).numpy()
    assert np.abs(actual - wanted).max() < 1e-7


@configs
def test_samples_have_the_stated_mean_and_open_probability(config):
    draws = 200_000
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(1))
    for value in (-1.5, 0.3, 2.5):
        log_alpha = torch.tensor([value])
        z = sample(log_alpha, uniform, config).double()
        deviation = float(z.std()) / math.sqrt(draws)
        assert z.mean().item() == pytest.approx(
            expected_value(log_alpha, config).item(), abs=5 * deviation
        )
        p = open_probability(log_alpha, config).item()
        deviation = math.sqrt(p * (1 - p) / draws)
        assert (z > 0).double().mean().item() == pytest.approx(p, abs=5 * deviation)


@configs
def test_the_open_probability_is_the_noise_above_the_threshold(config):
    wanted = [1 - threshold(0, value, config) for value in LOG_ALPHAS]
    actual = open_probability(torch.tensor(LOG_ALPHAS), config)
    np.testing.assert_allclose(actual.numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prob", [0.2, 0.9, 0.999])
@configs
def test_the_initial_gate_has_the_stated_open_probability(config, prob):
    config = GateConfig(
        temperature=config.temperature,
        stretch_low=config.stretch_low,
        stretch_high=config.stretch_high,
        init_open_prob=prob,
    )
    gate = HardConcreteGate(5, config)
    torch.testing.assert_close(gate.kept(), torch.full((5,), prob), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("temperature", "scale", "error"),
    [(1.0, 0.8, 0.0073), (2 / 3, 0.8, 0.0255), (2 / 3, 0.8 / (2 / 3), 0.0671), (2.0, 0.8, 0.0904)],
)
def test_the_mean_is_not_the_public_codes_logistic_fit(temperature, scale, error):
    log_alpha = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    mean = expected_value(log_alpha, GateConfig(temperature=temperature))
    largest = (mean - torch.sigmoid(scale * log_alpha)).abs().max().item()
    assert largest == pytest.approx(error, abs=1e-4)


@configs
def test_samples_follow_the_definition(config):
    u = np.linspace(0.001, 0.999, 400, dtype=np.float32)
    for value in (-4.0, 0.0, 3.0):
        actual = sample(torch.tensor([value]), torch.from_numpy(u), config)
        wanted = np.clip(stretched(u.astype(np.float64), value, config), 0, 1)
        assert actual.dtype == torch.float32
        np.testing.assert_allclose(actual.numpy(), wanted, rtol=0, atol=1e-6)


@configs
def test_the_gradient_of_a_sample_is_that_of_its_definition(config):
    # sample() works in float32, so finite differences are taken of the float64 definition
    u = np.array([0.02, 0.2, 0.35, 0.5, 0.65, 0.8, 0.98])
    for value in (-1.0, 0.0, 1.0):
        log_alpha = torch.full((len(u),), value, requires_grad=True)
        sample(log_alpha, torch.from_numpy(u), config).sum().backward()
        step = 1e-5
        above = np.clip(stretched(u, value + step, config), 0, 1)
        below = np.clip(stretched(u, value - step, config), 0, 1)
        np.testing.assert_allclose(
            log_alpha.grad.numpy(), (above - below) / (2 * step), rtol=1e-4, atol=1e-5
        )


def test_a_clamped_sample_passes_no_gradient():
    log_alpha = torch.tensor([-9.0, 9.0], requires_grad=True)
    z = sample(log_alpha, torch.tensor([0.5, 0.5]), GateConfig())
    assert z.tolist() == [0, 1]
    z.sum().backward()
    assert log_alpha.grad.tolist() == [0, 0]


@configs
def test_gradcheck_of_the_expected_value(config):
    log_alpha = torch.tensor(LOG_ALPHAS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: expected_value(x, config), (log_alpha,))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_most_extreme_noise_stays_finite(temperature):
    log_alpha = torch.tensor([-20.0, 0.0, 20.0], requires_grad=True)
    for u in (NOISE_EPS, 1 - NOISE_EPS):
        z = sample(log_alpha, torch.full((3,), u), GateConfig(temperature=temperature))
        z.sum().backward()
        assert torch.isfinite(z).all()
    assert torch.isfinite(log_alpha.grad).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature > 0"),
        ({"temperature": math.nan}, "temperature > 0"),
        ({"stretch_low": 0.0}, "stretch_low < 0 < 1 < stretch_high"),
        ({"stretch_high": 1.0}, "stretch_low < 0 < 1 < stretch_high"),
        ({"init_open_prob": 0.0}, "0 < init_open_prob < 1"),
        ({"init_open_prob": 1.0}, "0 < init_open_prob < 1"),
    ],
)
def test_an_impossible_configuration_is_refused(arguments, message):
    with pytest.raises(LowRankError, match=message):
        GateConfig(**arguments)


def random_gate(num_gates=64):
    gate = HardConcreteGate(num_gates, GateConfig())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        gate.log_alpha.copy_(3 * torch.randn(num_gates, generator=generator))
        gate.noise.copy_(torch.rand(num_gates, generator=generator))
    return gate


def test_training_samples_the_current_noise_and_evaluation_takes_the_mean():
    gate = random_gate()
    assert torch.equal(gate.train()(), sample(gate.log_alpha, gate.noise, gate.config))
    assert torch.equal(gate(), gate())
    assert torch.equal(gate.eval()(), expected_value(gate.log_alpha, gate.config))


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_gates_stay_float32_bit_for_bit_when_the_model_is_cast(cast):
    model = nn.Sequential(nn.Linear(4, 4), random_gate())
    log_alpha, noise = model[1].log_alpha.detach().clone(), model[1].noise.clone()
    model[1].log_alpha.grad = log_alpha / 3
    getattr(model, cast)()
    assert model[0].weight.dtype != torch.float32
    for value, wanted in (
        (model[1].log_alpha, log_alpha),
        (model[1].noise, noise),
        (model[1].log_alpha.grad, log_alpha / 3),
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, wanted)
    assert isinstance(model[1].log_alpha, nn.Parameter)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_touch_the_gates(training, dtype):
    gate = random_gate().train(training)
    wanted_z, wanted_kept = gate(), gate.kept()
    with torch.autocast("cpu", dtype=dtype):
        z, kept = gate(), gate.kept()
    assert z.dtype == kept.dtype == torch.float32
    assert torch.equal(z, wanted_z)
    assert torch.equal(kept, wanted_kept)


def test_the_noise_is_not_part_of_the_saved_state():
    assert list(random_gate().state_dict()) == ["parameter"]


@configs
def test_the_gradient_of_the_expected_count_is_its_slope_and_the_price(config):
    gate = HardConcreteGate(len(LOG_ALPHAS), config)
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor(LOG_ALPHAS))
    gate.kept().sum().backward()
    step = 1e-5
    above, below = (
        np.array([1 - threshold(0, value + shift, config) for value in LOG_ALPHAS])
        for shift in (step, -step)
    )
    wanted = (above - below) / (2 * step) + config.price_floor
    np.testing.assert_allclose(gate.log_alpha.grad.numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_the_price_reaches_wide_open_gates():
    """The value is P(z > 0); the gradient never falls below the floor."""
    config = GateConfig(price_floor=0.1)
    log_alpha = torch.tensor([-8.0, 0.0, 12.0], requires_grad=True)
    priced = priced_open_probability(log_alpha, config)
    assert torch.equal(priced, open_probability(log_alpha, config))
    priced.sum().backward()
    p = open_probability(log_alpha.detach(), config)
    torch.testing.assert_close(log_alpha.grad, p * (1 - p) + 0.1)
    assert (log_alpha.grad >= 0.1).all()
