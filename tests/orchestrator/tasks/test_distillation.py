"""What tasks make of a teacher: the parts of the loss, and whom it reaches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.distillation import hidden_loss
from lowrank.errors import LowRankError
from orchestrator.models import build_model
from orchestrator.tasks import Distillation, make_task
from tests.orchestrator.small import Family


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
        with pytest.raises(LowRankError, match="Silent has no hidden states"):
            task.loss(Silent(), task.batch(0, 0, 1), distillation)
