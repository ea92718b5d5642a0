"""What the training loop needs to know of a task, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank.distillation import Distillation, distilled
from orchestrator.data.prepare import PreparedData
from orchestrator.records import Metric
from orchestrator.spec import content_hash
from orchestrator.spec_tasks import AnyTask, Classification, Regression

Batch = dict[str, Tensor]

Role = Literal["student", "teacher"]
"""Who looks at a batch: the model that is trained, or the one it learns from."""


class TrainingTask(ABC):
    """A task on prepared data.

    Batches are a function of the seed and the step alone: trials of one campaign see the same
    data in the same order, and the number of workers only decides who computes which share.
    """

    metric: Metric
    max_length: int
    """Tokens of the longest input."""

    def __init__(self, data: PreparedData, batch_size: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed

    @abstractmethod
    def global_batch(self, step: int) -> np.ndarray:
        """Indices (examples, or window starts) of a step's whole batch, [batch_size]."""

    @abstractmethod
    def collate(self, indices: np.ndarray) -> Batch:
        """Model inputs, with `labels`, for some indices of the training split."""

    @abstractmethod
    def evaluate_shard(self, model: nn.Module, split: str, rank: int, world: int) -> Any:
        """This worker's share of an evaluation, as a JSON value for `combine`."""

    @abstractmethod
    def combine(self, shards: list[Any], split: str) -> dict[str, float]:
        """All metrics of a split, from the shards of all workers."""

    @abstractmethod
    def example_inputs(self, batch: int, length: int) -> Batch:
        """Inputs of an exact shape, for counting and timing; valid token ids."""

    def prepare_tokenizer(self, tokenizer: Any) -> None:  # noqa: B027 - texts are free in most
        """Make the exported tokenizer give what the model was trained on."""

    def begin_stretch(self) -> None:  # noqa: B027 - most tasks remember nothing
        """Called before the first step of a stretch: forget what the last one left behind."""

    def memory(self) -> dict[str, Tensor]:
        """What is remembered from the last batch, for `remember`; most tasks remember nothing."""
        return {}

    def remember(self, memory: dict[str, Tensor]) -> None:  # noqa: B027 - as above
        """Go on after the batch that left this behind."""

    def shared_out(
        self, memories: list[dict[str, Tensor]], rank: int, world: int
    ) -> dict[str, Tensor]:
        """What one worker is to remember of a batch that another number of workers left behind.

        Args:
            memories: Of all of them, by rank.
            rank: Of the worker.
            world: Their number now.
        """
        return {}

    def output(self, model: nn.Module, inputs: Batch, role: Role, **options: Any) -> Any:
        """The model's output, with `.logits` [..., classes], for a training batch.

        A task whose models remember the last batch keeps the memories of both roles apart.
        """
        return model(**inputs, **options)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """One worker's share of a step's batch."""
        return self.collate(self.global_batch(step)[rank::world])

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        distillation: Distillation | None = None,
    ) -> Tensor:
        """(1 - w) loss of labels + w loss of the teacher's predictions + v hidden states, each a
        mean over predictions."""
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        hidden = distillation is not None and distillation.hidden > 0
        options = {"output_hidden_states": True} if hidden else {}
        output = self.output(model, inputs, "student", **options)
        hard = self.label_loss(output.logits.float().flatten(0, -2), labels.flatten())
        if distillation is None:
            return hard
        with torch.no_grad():
            wanted = self.output(distillation.teacher, inputs, "teacher", **options)
        soft = distilled(distillation, output, wanted, inputs.get("attention_mask"))
        return (1 - distillation.weight) * hard + soft

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of predictions [n, outputs] against labels [n]: cross-entropy."""
        return F.cross_entropy(logits, labels)

    def model_inputs(self, batch: Batch) -> Batch:
        """What a model takes of a batch when nothing is remembered."""
        return {name: value for name, value in batch.items() if name != "labels"}

    def generator(self, *parts: int | str) -> np.random.Generator:
        """A stream of its own for every purpose, from the task's seed."""
        return np.random.default_rng(int(content_hash([self.seed, *parts]), 16))


def make_task(spec: AnyTask, data: PreparedData, seed: int) -> TrainingTask:
    """The runtime form of a task of the spec."""
    from orchestrator.models import carries_state, takes_targets
    from orchestrator.tasks.classification import ClassificationTask
    from orchestrator.tasks.clustered import ClusteredLanguageModellingTask
    from orchestrator.tasks.language_modelling import LanguageModellingTask
    from orchestrator.tasks.recurrent import RecurrentLanguageModellingTask
    from orchestrator.tasks.regression import RegressionTask

    if isinstance(spec, Classification):
        return ClassificationTask(spec, data, seed)
    if isinstance(spec, Regression):
        return RegressionTask(spec, data, seed)
    if carries_state(spec.model):
        return RecurrentLanguageModellingTask(spec, data, seed)
    if takes_targets(spec.model):
        return ClusteredLanguageModellingTask(spec, data, seed)
    return LanguageModellingTask(spec, data, seed)
