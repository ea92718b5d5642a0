"""Two real processes against one: the gates must not drift apart."""

from __future__ import annotations

import pytest
import torch

from lowrank import FlopL0, Pruner
from tests.lowrank import mlp, scramble_gates
from tests.lowrank.processes import in_processes

WORKERS, STEPS = 2, 3


def global_batch(step):
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(8, 12, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, 12, generator=generator, dtype=torch.float64)


def train(rank, workers, wrap):
    """A few steps on this worker's shard; gradients of the last step, then the final state."""
    # global generators differ between workers, the gate noise must not
    pruner = Pruner(mlp().double(), FlopL0(density=0.4, gated_steps=4, anneal_fraction=0.5), seed=7)
    scramble_gates(pruner)
    torch.manual_seed(1000 + rank)
    model = wrap(pruner.model)
    optimizer = torch.optim.SGD(pruner.parameter_groups(0.1), lr=0.1)
    for step in range(STEPS):
        x, y = (tensor.chunk(workers)[rank] for tensor in global_batch(step))
        optimizer.zero_grad()
        ((model(x) - y).square().mean() + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()
    grads = {f"grad {name}": p.grad.clone() for name, p in pruner.model.named_parameters()}
    return grads | pruner.model.state_dict() | pruner.state_dict()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    states = in_processes(train, tmp_path, WORKERS)
    wanted = train(0, 1, lambda model: model)
    assert wanted["lagrangian.lambda"].abs().min() > 0
    for name, value in wanted.items():
        assert torch.equal(states[0][name], states[1][name]), name
        if name.startswith("grad"):
            assert value.abs().max() > 0
        # the gates are float32, and the last digit of theirs reaches the float64 weights
        tolerance = 1e-8 if value.dtype == torch.float64 and "gate" not in name else 2e-5
        torch.testing.assert_close(states[0][name], value, rtol=tolerance, atol=tolerance)
