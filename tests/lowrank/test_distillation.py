"""What a model learns from the dense one: the losses against their formulas."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lowrank import LowRankError
from lowrank.distillation import Distillation, distilled, hidden_loss, soft_loss


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class TestPredictions:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
    def test_the_formula(self, temperature: float):
        student, teacher = draw(5, 3) * 3, draw(5, 3, seed=1) * 3
        total = 0.0
        for z, t in zip(student.tolist(), teacher.tolist(), strict=True):
            p, q = softmax(t, temperature), softmax(z, temperature)
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        wanted = temperature**2 * total / 5
        assert soft_loss(student, teacher, temperature).item() == pytest.approx(wanted, rel=1e-12)

    def test_equal_predictions_cost_nothing(self):
        logits = draw(4, 6)
        assert soft_loss(logits, logits + 3.0, 2.0).item() == pytest.approx(0, abs=1e-12)

    def test_the_temperature_leaves_the_size_of_gradients(self):
        """tau^2 makes up for the 1 / tau^2 of soft targets (Hinton et al. 2015, section 2)."""
        sizes = []
        for temperature in (20.0, 200.0):
            logits = draw(4, 6).requires_grad_()
            soft_loss(logits, draw(4, 6, seed=1), temperature).backward()
            sizes.append(logits.grad.norm().item())
        assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


class TestHiddenStates:
    LAYERS, BATCH, LENGTH, WIDTH = 3, 2, 4, 5

    def states(self, seed: int) -> list[Tensor]:
        shape = (self.BATCH, self.LENGTH, self.WIDTH)
        return [draw(*shape, seed=10 * seed + i, dtype=torch.float32) for i in range(self.LAYERS)]

    @pytest.mark.parametrize("padded", [True, False])
    def test_brute_force(self, padded: bool):
        # layers of very different scales count the same
        targets = [state * 10**i for i, state in enumerate(self.states(1))]
        noise = [0.3 * state * 10**i for i, state in enumerate(self.states(2))]
        states = [t + n for t, n in zip(targets, noise, strict=True)]
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]) if padded else None
        ratios = []
        for state, target in zip(states, targets, strict=True):
            error = size = 0.0
            for row in range(self.BATCH):
                for place in range(self.LENGTH):
                    if mask is None or mask[row, place]:
                        h, t = state[row, place].tolist(), target[row, place].tolist()
                        error += sum((a - b) ** 2 for a, b in zip(h, t, strict=True))
                        size += sum(b**2 for b in t)
            ratios.append(error / size)
        wanted = sum(ratios) / self.LAYERS
        assert hidden_loss(states, targets, mask).item() == pytest.approx(wanted, rel=1e-5)
        assert max(ratios) < 2 * min(ratios)

    def test_padding_does_not_matter(self):
        states, targets = self.states(1), self.states(2)
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        before = hidden_loss(states, targets, mask).item()
        other = [state.clone() for state in states]
        for state in other:
            state[1, 2:] = 1e6
        assert hidden_loss(other, targets, mask).item() == before
        assert hidden_loss(other, targets).item() > 1e6

    def test_equal_states_cost_nothing(self):
        assert hidden_loss(self.states(1), self.states(1)).item() == 0

    def test_a_teacher_of_zeros_gives_no_nan(self):
        zeros = [torch.zeros(2, 4, 5)]
        assert hidden_loss(zeros, zeros).item() == 0

    def test_every_layer_needs_its_own(self):
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            hidden_loss(self.states(1), self.states(2)[:-1])


class TestDistilled:
    MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])

    def outputs(self, *shape: int, seed: int) -> SimpleNamespace:
        states = [draw(2, 4, 5, seed=seed + i, dtype=torch.float32) for i in range(3)]
        return SimpleNamespace(logits=draw(*shape, seed=seed).float(), hidden_states=states)

    def test_it_is_the_weighted_sum_over_the_positions_that_count(self):
        mine, theirs = self.outputs(2, 4, 6, seed=1), self.outputs(2, 4, 6, seed=7)
        weights = Distillation(teacher=nn.Identity(), weight=0.3, temperature=2.0, hidden=0.7)
        kept = self.MASK.bool()
        soft = soft_loss(mine.logits[kept], theirs.logits[kept], 2.0)
        hidden = hidden_loss(mine.hidden_states[1:], theirs.hidden_states[1:], self.MASK)
        found = distilled(weights, mine, theirs, self.MASK)
        assert found.item() == pytest.approx((0.3 * soft + 0.7 * hidden).item(), rel=1e-6)

    def test_a_mask_of_positions_does_not_touch_predictions_per_row(self):
        mine, theirs = self.outputs(2, 6, seed=1), self.outputs(2, 6, seed=7)
        weights = Distillation(teacher=nn.Identity())
        found = distilled(weights, mine, theirs, self.MASK)
        assert found.item() == pytest.approx(0.5 * soft_loss(mine.logits, theirs.logits, 1).item())

    def test_a_single_output_is_a_score(self):
        mine, theirs = self.outputs(2, 1, seed=1), self.outputs(2, 1, seed=7)
        found = distilled(Distillation(teacher=nn.Identity(), weight=1.0), mine, theirs)
        wanted = sum((a - b) ** 2 for a, b in zip(mine.logits, theirs.logits, strict=True)) / 2
        assert found.item() == pytest.approx(wanted.item(), rel=1e-6)

    def test_a_model_without_hidden_states_is_named(self):
        mine = SimpleNamespace(logits=draw(2, 6), hidden_states=None)
        with pytest.raises(LowRankError, match="Identity has no hidden states"):
            distilled(Distillation(teacher=nn.Identity(), hidden=1.0), mine, mine)
