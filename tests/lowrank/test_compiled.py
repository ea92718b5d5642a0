"""Gated models under torch.compile: one graph, compiled once, whatever the gates do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank import Adaptive, Agp, FlopAgp, FlopL0, Method, NeuronL0, Pruner
from tests.lowrank import tiny_gpt2, token_ids

STEPS = 6
METHODS: dict[str, Callable[[], Method]] = {
    "adaptive": lambda: Adaptive(density=0.3, gated_steps=STEPS, start="svd"),
    "flop-l0": lambda: FlopL0(density=0.3, gated_steps=STEPS),
    "flop-agp": lambda: FlopAgp(density=0.3, gated_steps=STEPS),
    "np-l0": lambda: NeuronL0(density=0.3, gated_steps=STEPS),
    "agp": lambda: Agp(density=0.3, gated_steps=STEPS),
}


def losses_of(
    pruner: Pruner, forward: Callable[[Tensor], Tensor], shrink_after: int | None = None
) -> list[float]:
    """Of a few steps of training."""
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-3))
    found = []
    for step in range(STEPS):
        ids = token_ids(2, 8, step)
        loss = F.cross_entropy(forward(ids).flatten(0, 1), ids.flatten())
        (loss + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        if step == shrink_after:
            assert pruner.shrink(optimizer)
        found.append(loss.item())
    return found


def make(kind: str) -> Pruner:
    model = tiny_gpt2()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    pruner = Pruner(model, METHODS[kind](), exclude=["*lm_head"], seed=3)
    pruner.model.train()
    return pruner


@pytest.mark.parametrize("kind", METHODS)
def test_a_training_compiles_once_and_in_one_piece(kind):
    torch._dynamo.reset()
    eager, compiled = make(kind), make(kind)
    counter = torch._dynamo.testing.CompileCounter()
    model = torch.compile(compiled.model, fullgraph=True, backend=counter, dynamic=False)
    found = losses_of(compiled, lambda ids: model(input_ids=ids).logits)
    assert counter.frame_count == 1
    wanted = losses_of(eager, lambda ids: eager.model(input_ids=ids).logits)
    assert found == pytest.approx(wanted, rel=1e-6)
    assert len(set(wanted)) == STEPS


def test_only_components_that_leave_cost_a_compilation():
    torch._dynamo.reset()
    pruner = make("adaptive")
    counter = torch._dynamo.testing.CompileCounter()
    model = torch.compile(pruner.model, fullgraph=True, backend=counter, dynamic=False)
    losses_of(pruner, lambda ids: model(input_ids=ids).logits, shrink_after=3)
    assert counter.frame_count == 2
