"""What the training loop needs to know of a task, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.data.prepare import PreparedData
from orchestrator.records import Metric
from orchestrator.spec import Classification, LanguageModelling, content_hash

Batch = dict[str, Tensor]


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

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """One worker's share of a step's batch."""
        return self.collate(self.global_batch(step)[rank::world])

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        teacher: nn.Module | None = None,
        distill: float = 0.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """(1 - w) cross-entropy + w tau^2 KL(teacher || student), mean over predictions.

        Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2.
        """
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs).logits.float().flatten(0, -2)
        hard = F.cross_entropy(logits, labels.flatten())
        if teacher is None or distill == 0:
            return hard
        with torch.no_grad():
            target = teacher(**inputs).logits.float().flatten(0, -2)
        soft = F.kl_div(
            F.log_softmax(logits / temperature, -1),
            F.log_softmax(target / temperature, -1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - distill) * hard + distill * temperature**2 * soft

    def generator(self, *parts: int | str) -> np.random.Generator:
        """A stream of its own for every purpose, from the task's seed."""
        return np.random.default_rng(int(content_hash([self.seed, *parts]), 16))


def make_task(
    spec: LanguageModelling | Classification, data: PreparedData, seed: int
) -> TrainingTask:
    """The runtime form of a task of the spec."""
    from orchestrator.tasks.classification import ClassificationTask
    from orchestrator.tasks.language_modelling import LanguageModellingTask

    if isinstance(spec, LanguageModelling):
        return LanguageModellingTask(spec, data, seed)
    return ClassificationTask(spec, data, seed)
