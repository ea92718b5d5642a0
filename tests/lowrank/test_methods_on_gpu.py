"""Every method on a GPU: the same choice and the same model as on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from lowrank import Pruner
from tests.lowrank import batch, relative_error
from tests.lowrank.every_method import METHODS, NAMES, STEPS, moments_of, toy

pytestmark = pytest.mark.gpu


def prune(kind, device, autocast=False):
    """A pruner after its gated steps, in float64 but for the gates."""
    model = toy().double()
    method = METHODS[kind](density=0.5)
    moments = moments_of(model) if method.needs_moments else None
    pruner = Pruner(model.to(device), method, seed=11, moments=moments)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-2))
    pruner.model.train()
    for step in range(STEPS):
        x, y = (each.to(device) for each in batch(rows=16, width=8, seed=step))
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = (pruner.model(x) - y).square().mean() + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    pruner.model.eval()
    return pruner


# movement scores start equal: Adam's first steps are signs, and rounding decides between ties
DECIDED = [kind for kind in METHODS if "movement" not in kind]


@pytest.mark.parametrize("kind", DECIDED)
def test_a_gpu_prunes_as_the_cpu_does(kind):
    here, there = prune(kind, "cpu"), prune(kind, "cuda")
    assert float(there.expected_density().detach()) == pytest.approx(
        float(here.expected_density().detach()), abs=1e-4
    )
    wanted, found = here.project(), there.project()
    assert found.density == pytest.approx(wanted.density, abs=1e-6)
    for name in NAMES:
        assert torch.equal(found.keep[name].cpu(), wanted.keep[name])
    x, _ = batch(rows=50, width=8, seed=99)
    assert relative_error(there.model(x.cuda()).cpu(), here.model(x)) < 1e-3
    small = there.finish(found)
    assert all(p.is_cuda for p in small.parameters())
    assert relative_error(small(x.cuda()).cpu(), here.finish(wanted)(x)) < 1e-3


@pytest.mark.parametrize("kind", METHODS)
def test_gates_and_budget_stay_exact_in_bfloat16(kind):
    pruner = prune(kind, "cuda", autocast=True)
    assert all(
        layer.gate.parameter.dtype == torch.float32
        for layer in pruner.layers.values()
        if hasattr(layer, "gate")
    )
    gated = copy.deepcopy(pruner.model)
    projection = pruner.project()
    if kind != "flop-l0 faithful":
        assert projection.density <= 0.5
    x, _ = batch(rows=50, width=8, seed=99)
    with torch.no_grad():
        assert torch.isfinite(gated(x.cuda())).all()
        assert torch.isfinite(pruner.finish(projection)(x.cuda())).all()
