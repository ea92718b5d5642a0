"""All methods by name, and a small model to try them on."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lowrank import Adaptive, Agp, FixedRank, FlopAgp, FlopL0, NeuronL0, Pruner, Start
from lowrank.gate import HardConcreteGate
from lowrank.magnitude import MagnitudeGate
from lowrank.masked import MaskedLinear
from lowrank.moments import collect_moments
from lowrank.surgery import find_layers
from lowrank.threshold import ThresholdGate
from tests.lowrank import batch

STEPS = 12
COVARIANCE = Start(kind="covariance")

GATED = {
    "flop-l0": lambda **f: FlopL0(gated_steps=STEPS, **f),
    "flop-l0 covariance": lambda **f: FlopL0(gated_steps=STEPS, start=COVARIANCE, **f),
    "neuron-l0": lambda **f: NeuronL0(gated_steps=STEPS, **f),
}
ADAPTIVE = {
    "adaptive": lambda **f: Adaptive(gated_steps=STEPS, **f),
    "adaptive svd": lambda **f: Adaptive(gated_steps=STEPS, start="svd", **f),
}
TRUNCATING = ADAPTIVE | {
    "flop-l0 faithful": lambda **f: FlopL0.faithful(gated_steps=STEPS, **f),
}
GRADUAL = {
    "flop-agp": lambda **f: FlopAgp(gated_steps=STEPS, **f),
    "flop-agp covariance": lambda **f: FlopAgp(gated_steps=STEPS, start=COVARIANCE, **f),
    "flop-agp tensor": lambda **f: FlopAgp(gated_steps=STEPS, scope="tensor", **f),
    "agp weight": lambda **f: Agp(gated_steps=STEPS, **f),
    "agp weight tensor": lambda **f: Agp(gated_steps=STEPS, scope="tensor", **f),
    "agp block": lambda **f: Agp(gated_steps=STEPS, granularity="block", block=4, **f),
    "agp row": lambda **f: Agp(gated_steps=STEPS, granularity="row", **f),
    "agp column": lambda **f: Agp(gated_steps=STEPS, granularity="column", **f),
    "movement weight": lambda **f: Agp(gated_steps=STEPS, movement=True, **f),
    "movement block": lambda **f: Agp(
        gated_steps=STEPS, movement=True, granularity="block", block=4, **f
    ),
}
FIXED = {
    "fixed uniform": lambda **f: FixedRank(**f),
    "fixed uniform svd": lambda **f: FixedRank(start=Start(), **f),
    "fixed greedy": lambda **f: FixedRank(allocation="greedy", **f),
    "fixed greedy svd": lambda **f: FixedRank(allocation="greedy", start=Start(), **f),
}
FULL = GATED | GRADUAL | FIXED
METHODS = FULL | TRUNCATING


def toy(seed=0):
    """With and without bias, and Conv1D; break-even ranks 4, 5, 4."""
    torch.manual_seed(seed)
    last = Conv1D(8, 12)
    nn.init.normal_(last.weight, std=0.3)
    nn.init.normal_(last.bias, std=0.3)
    return nn.Sequential(
        nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 12, bias=False), nn.Tanh(), last
    ).eval()


NAMES, TOTAL = ["0", "2", "4"], 96 + 144 + 96


def moments_of(model, seed=7):
    """From inputs with a mean and a scale of their own per feature."""
    generator = torch.Generator().manual_seed(seed)
    x = 1 + torch.randn(300, 8, generator=generator) * torch.linspace(0.2, 2, 8)
    dtype = next(model.parameters()).dtype
    sums = collect_moments(model, find_layers(model).layers, [{"input": x.to(dtype)}])
    return {name: sums[name].moments() for name in sums}


@cache
def toy_moments():
    return moments_of(toy())


def prune(kind, model=None, seed=11, density=0.5, **fields):
    method = METHODS[kind](density=density, **fields)
    moments = toy_moments() if method.needs_moments else None
    return Pruner(toy() if model is None else model, method, seed=seed, moments=moments)


def optimizer_of(pruner):
    return torch.optim.AdamW(pruner.parameter_groups(1e-2))


def train(pruner, optimizer, first=0, last=STEPS):
    pruner.model.train()
    for step in range(first, last):
        x, y = batch(rows=16, width=8, seed=step, dtype=torch.float32)
        ((pruner.model(x) - y).square().mean() + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    pruner.model.eval()


def trained(kind, **fields):
    pruner = prune(kind, **fields)
    train(pruner, optimizer_of(pruner))
    return pruner


def shut(pruner, projection):
    """Close for good what the projection leaves out, as perfect gates would have."""
    for name, layer in pruner.layers.items():
        keep = projection.keep[name]
        if isinstance(layer, MaskedLinear):
            layer.set_mask(keep)
        elif isinstance(layer.gate, MagnitudeGate):
            layer.gate.set_mask(keep)
        else:
            with torch.no_grad():
                layer.gate.parameter[~keep] = -50


def silence(pruner, name):
    """Give a layer's units the lowest scores of the model."""
    layer = pruner.layers[name]
    with torch.no_grad():
        if isinstance(layer, MaskedLinear):
            layer.weight.mul_(1e-6)
            if layer.score is not None:
                layer.score.fill_(-50)
        elif isinstance(layer.gate, HardConcreteGate | ThresholdGate):
            layer.gate.parameter.fill_(-50)
        else:
            layer.gate.parameter.mul_(1e-6)
            layer.energy.mul_(1e-12)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value, second[name]), name
