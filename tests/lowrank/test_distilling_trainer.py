"""A Trainer with a teacher: against the same sums by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

from lowrank import Adaptive, Pruner
from lowrank.distillation import Distillation, distilled
from lowrank.trainer import DistillingTrainer, PrunerCallback
from tests.lowrank import tiny_gpt2, token_ids

MASK = [[1] * 8, [1] * 5 + [0] * 3]


def rows(size: int = 8) -> list[dict[str, torch.Tensor]]:
    made = []
    for seed in range(size):
        ids, mask = token_ids(1, 8, seed)[0], torch.tensor(MASK[seed % 2])
        made.append({"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask > 0, -100)})
    return made


def arguments(folder: Path, **fields: Any) -> TrainingArguments:
    options: dict[str, Any] = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **(options | fields))


def models() -> tuple[Any, Any]:
    """A student, and a teacher that answers otherwise; both without dropout."""
    student = tiny_gpt2().eval()
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student, teacher


@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_gradients_are_those_of_the_sum(hidden, tmp_path):
    """Two micro-batches of two rows: the labels' part is a mean over all tokens, the teacher's a
    mean of the micro-batches'."""
    student, teacher = models()
    by_hand = copy.deepcopy(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    options: dict[str, Any] = {"distill": 0.3, "temperature": 2.0, "hidden": hidden}
    DistillingTrainer(
        student,
        arguments(tmp_path),
        train_dataset=rows(),
        optimizers=(optimizer, schedule),
        teacher=teacher,
        **options,
    ).train()

    weights = Distillation(teacher=teacher, weight=0.3, temperature=2.0, hidden=hidden)
    data = rows()
    # the Trainer counts all labels of the step, the first of each row too
    counted = sum(int((row["labels"] != -100).sum()) for row in data[:4])
    for start in (0, 2):
        batch = {k: torch.stack([data[start][k], data[start + 1][k]]) for k in data[0]}
        found = by_hand(**batch, output_hidden_states=True)
        with torch.no_grad():
            wanted = teacher(**batch, output_hidden_states=True)
        logits, labels = found.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        hard = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / counted
        soft = distilled(weights, found, wanted, batch["attention_mask"]) / 2
        (0.7 * hard + soft).backward()
    for name, parameter in by_hand.named_parameters():
        moved = before[name] - student.get_parameter(name)
        # what is left of a difference of weights in float32
        assert torch.allclose(moved, parameter.grad, rtol=1e-3, atol=2e-7), name


def test_evaluation_is_without_the_teacher(tmp_path):
    student, teacher = models()
    options: dict[str, Any] = {"args": arguments(tmp_path), "eval_dataset": rows()}
    with_teacher = DistillingTrainer(student, teacher=teacher, **options).evaluate()
    assert with_teacher["eval_loss"] == Trainer(student, **options).evaluate()["eval_loss"]


def test_a_pruned_model_learns_from_its_dense_one(tmp_path):
    """With the labels' weight at zero the small model comes nearer to the teacher's answers."""
    dense, _ = models()
    teacher = copy.deepcopy(dense)
    method = Adaptive(density=0.5, gated_steps=10, start="svd")
    pruner = Pruner(dense, method, exclude=["*lm_head"], seed=3)
    pruning = PrunerCallback(pruner)
    args = arguments(tmp_path, max_steps=60, learning_rate=3e-3, lr_scheduler_type="constant")
    weights = Distillation(teacher=teacher, weight=1.0)
    batch = {k: torch.stack([row[k] for row in rows()]) for k in ("input_ids", "attention_mask")}

    def distance() -> float:
        with torch.no_grad():
            answers = pruner.model.eval()(**batch), teacher(**batch)
        return distilled(weights, *answers, batch["attention_mask"]).item()

    far: list[float] = []

    class AtProjection(PrunerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == method.gated_steps:
                far.append(distance())
                pruner.model.train()

    pruning = AtProjection(pruner)
    DistillingTrainer(
        pruner.model,
        args,
        train_dataset=rows(),
        callbacks=[pruning],
        optimizers=(pruning.optimizer(args), None),
        teacher=teacher,
        distill=1.0,
    ).train()
    assert distance() < 0.5 * far[0]


def test_encoder_decoders_are_taught_where_they_have_labels(tmp_path):
    config = T5Config(
        decoder_start_token_id=0,
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
    )
    student, teacher = (T5ForConditionalGeneration(config) for _ in range(2))
    labels = torch.tensor([[3, 4, -100], [5, -100, -100]])
    batch = {"input_ids": token_ids(2, 6) % 40, "labels": labels}
    trainer = DistillingTrainer(student.train(), arguments(tmp_path), teacher=teacher, distill=1.0)
    loss = trainer.compute_loss(student, batch).item()
    weights = Distillation(teacher=teacher, weight=1.0)
    with torch.no_grad():
        wanted = distilled(weights, student(**batch), teacher(**batch), labels != -100).item()
    assert loss == pytest.approx(wanted, rel=1e-6)
