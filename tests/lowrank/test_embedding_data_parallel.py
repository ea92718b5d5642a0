"""Two real processes against one, with tied tables of which each sees a part only."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lowrank import Adaptive, Pruner
from lowrank.models.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from tests.lowrank import tiny_gpt2
from tests.lowrank.processes import in_processes

WORKERS, STEPS = 2, 3
EDGES, DIMS, WIDTH = (0, 9, 20, 40), (8, 4, 2), 16
METHOD = Adaptive(density=0.4, gated_steps=4, start="svd")


class Clustered(torch.nn.Module):
    """Adaptive embedding and softmax with one matrix between."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = AdaptiveEmbedding(EDGES, DIMS, WIDTH)
        self.hidden = torch.nn.Linear(WIDTH, WIDTH)
        self.softmax = AdaptiveSoftmax(EDGES, DIMS, WIDTH, self.table)

    def forward(self, ids):
        states = torch.tanh(self.hidden(self.table(ids)))
        return self.softmax.loss(states.flatten(0, 1), ids.roll(1, 1).flatten())


class Distilled(Clustered):
    """The same with a teacher, whose predictions are made up."""

    def forward(self, ids):
        states = torch.tanh(self.hidden(self.table(ids))).flatten(0, 1)
        targets = ids.roll(1, 1).flatten()
        teacher = [logits.detach().sin() for logits, _ in self.softmax.needed(states, targets)]
        return self.softmax.loss(states, targets, teacher, weight=0.5, temperature=2.0)


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = tiny_gpt2()

    def forward(self, ids):
        return self.model(input_ids=ids, labels=ids).loss


def global_batch(step):
    """The first half has tokens of the first cluster only, the second of the others."""
    generator = torch.Generator().manual_seed(100 + step)
    frequent = torch.randint(0, 9, (4, 6), generator=generator)
    return torch.cat([frequent, torch.randint(9, 40, (4, 6), generator=generator)])


def train(make, rank, workers, wrap):
    """A few steps on this worker's shard; gradients of the last step, then the final state."""
    pruner = Pruner(make().double(), METHOD, embeddings=True, seed=7)
    model = wrap(pruner.model).train()
    optimizer = torch.optim.SGD(pruner.parameter_groups(0.1), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        (model(global_batch(step).chunk(workers)[rank]) + pruner.penalty()).backward()
        grads = {
            f"grad {name}": p.grad.clone()
            for name, p in pruner.model.named_parameters()
            if "gate" not in name
        }
        optimizer.step()
        pruner.step()
    return grads | pruner.model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("make", [Clustered, Distilled, Tied])
def test_two_processes_have_the_gradients_of_one(make, tmp_path):
    states = in_processes(partial(train, make), tmp_path, WORKERS)
    wanted = train(make, 0, 1, lambda model: model)
    for name, value in wanted.items():
        assert torch.equal(states[0][name], states[1][name]), name
        # the gates are float32, and the last digit of theirs reaches the float64 weights
        tolerance = 1e-6 if value.dtype == torch.float64 and "gate" not in name else 2e-4
        torch.testing.assert_close(
            states[0][name],
            value,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )
