"""What a model learns from the dense one: both losses against their formulas."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.errors import ModelError
from orchestrator.models import build_model
from orchestrator.tasks import Distillation, make_task
from orchestrator.tasks.distillation import hidden_loss, soft_loss
from tests.orchestrator.small import Family


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


class TestLoss:
    WEIGHT, TEMPERATURE, HIDDEN = 0.7, 2.0, 3.0

    def models(self, family: Family) -> tuple[nn.Module, nn.Module]:
        student, teacher = (
            build_model(family.task, family.data, seed=seed).eval() for seed in (1, 2)
        )
        return student, teacher

    def distillation(self, teacher: nn.Module, **fields: Any) -> Distillation:
        return Distillation(
            teacher=teacher, **{"weight": self.WEIGHT, "temperature": self.TEMPERATURE} | fields
        )

    def test_is_the_sum_of_its_parts(self, either: Family):
        task = make_task(either.task, either.data, seed=0)
        student, teacher = self.models(either)
        batch = task.batch(0, 0, 1)
        with_all = self.distillation(teacher, hidden=self.HIDDEN)
        loss = task.loss(student, batch, with_all).item()
        without = task.loss(student, batch, self.distillation(teacher)).item()
        inputs = task.model_inputs(batch)
        mine, theirs = (
            # the first are embeddings, which no layer made
            model(**inputs, output_hidden_states=True).hidden_states[1:]
            for model in (student, teacher)
        )
        assert len(mine) == 2
        hidden = hidden_loss(mine, theirs, inputs.get("attention_mask")).item()
        assert hidden > 0.1
        assert loss == pytest.approx(without + self.HIDDEN * hidden, rel=1e-5)
        soft = self.distillation(teacher, weight=1.0)
        hard = self.distillation(teacher, weight=0.0)
        parts = [task.loss(student, batch, each).item() for each in (hard, soft)]
        assert parts[0] == pytest.approx(task.loss(student, batch).item(), rel=1e-6)
        assert without == pytest.approx(0.3 * parts[0] + 0.7 * parts[1], rel=1e-5)

    def test_only_the_student_learns(self, either: Family):
        task = make_task(either.task, either.data, seed=0)
        student, teacher = self.models(either)
        # nothing but the hidden states: what reaches the student came through them
        only_hidden = self.distillation(teacher, hidden=1.0, weight=0.0)
        batch = task.batch(0, 0, 1)
        task.loss(student, batch, only_hidden).backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())
        before = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
        student.zero_grad()
        task.loss(student, batch).backward()
        moved = [n for n, p in student.named_parameters() if n in before and p.ndim == 2]
        assert any(not torch.equal(before[n], student.get_parameter(n).grad) for n in moved)

    def test_padding_of_a_batch_changes_nothing(self, classes: Family):
        task = make_task(classes.task, classes.data, seed=0)
        student, teacher = self.models(classes)
        batch = next(
            batch
            for batch in (task.batch(step, 0, 1) for step in range(6))
            if not batch["attention_mask"].all()
        )
        wider = {
            name: value if name == "labels" else nn.functional.pad(value, (0, 3))
            for name, value in batch.items()
        }
        assert wider["attention_mask"].shape != batch["attention_mask"].shape
        distillation = self.distillation(teacher, hidden=1.0)
        losses = [task.loss(student, each, distillation).item() for each in (batch, wider)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    def test_a_model_that_shows_no_states_is_named(self, lm: Family):
        class Silent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.logits = nn.Parameter(torch.zeros(lm.data.vocab_size))

            def forward(self, input_ids: Tensor, **ignored: Any) -> Any:
                logits = self.logits.expand(*input_ids.shape, -1)
                return SimpleNamespace(logits=logits, hidden_states=None)

        task = make_task(lm.task, lm.data, seed=0)
        distillation = self.distillation(Silent(), hidden=1.0)
        with pytest.raises(ModelError, match="Silent has no hidden states"):
            task.loss(Silent(), task.batch(0, 0, 1), distillation)
