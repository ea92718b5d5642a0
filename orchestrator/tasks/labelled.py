"""One label per text, or pair of texts: batches, and what evaluation collects."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.data.prepare import PreparedData
from orchestrator.models import takes_token_types
from orchestrator.records import Metric
from orchestrator.spec_tasks import Classification, Regression
from orchestrator.tasks.base import Batch, TrainingTask

BUCKET_BATCHES = 32
"""Batches sorted by length together. Sorting within 32 batches removes most of the padding and
leaves the order of examples nearly random."""

EVALUATION_BATCH = 64


class LabelledTask(TrainingTask):
    """Dynamic padding and length buckets; metrics of all predictions together."""

    label_type: type[np.generic]
    """Of `labels` in a batch."""

    def __init__(self, spec: Classification | Regression, data: PreparedData, seed: int) -> None:
        super().__init__(data, spec.dense.batch, seed)
        self.max_length = spec.max_length
        self.metric = Metric(name=spec.metric, higher_is_better=True)
        self._examples = {s: data.examples(s) for s in ("train", "validation", "test")}
        self.uses_token_types = bool(data.info["uses_type_ids"]) and takes_token_types(spec.model)
        self._lengths = np.diff(np.asarray(self._examples["train"].offsets))
        self._order: tuple[int, np.ndarray] | None = None

    def global_batch(self, step: int) -> np.ndarray:
        per_epoch = max(1, len(self._lengths) // self.batch_size)
        epoch, position = divmod(step, per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._epoch(epoch, per_epoch))
        return self._order[1][position]

    def _epoch(self, epoch: int, per_epoch: int) -> np.ndarray:
        """All batches of an epoch, [per_epoch, batch_size], lengths alike within a batch."""
        generator = self.generator("epoch", epoch)
        order = generator.permutation(len(self._lengths))
        # a data set smaller than one batch is repeated
        order = np.resize(order, per_epoch * self.batch_size)
        bucket = BUCKET_BATCHES * self.batch_size
        pieces = [order[i : i + bucket] for i in range(0, len(order), bucket)]
        ordered = np.concatenate([p[np.argsort(self._lengths[p], kind="stable")] for p in pieces])
        batches = ordered.reshape(per_epoch, self.batch_size)
        return batches[generator.permutation(per_epoch)]

    def collate(self, indices: np.ndarray) -> Batch:
        return self._pad("train", indices)

    def evaluate_shard(self, model: nn.Module, split: str, rank: int, world: int) -> Any:
        """Labels and predictions of this worker's examples."""
        examples = self._examples[split]
        order = np.argsort(np.diff(np.asarray(examples.offsets)), kind="stable")
        chunks = [order[i : i + EVALUATION_BATCH] for i in range(0, len(order), EVALUATION_BATCH)]
        device = next(model.parameters()).device
        labels: list[float] = []
        predictions: list[float] = []
        for chunk in chunks[rank::world]:
            batch = self._pad(split, chunk)
            labels += batch.pop("labels").tolist()
            with torch.inference_mode():
                logits = model(**{k: v.to(device) for k, v in batch.items()}).logits
            predictions += self.answers(logits).tolist()
        return [labels, predictions]

    def combine(self, shards: list[Any], split: str) -> dict[str, float]:
        labels = [label for shard in shards for label in shard[0]]
        predictions = [prediction for shard in shards for prediction in shard[1]]
        return self.metrics(labels, predictions)

    @abstractmethod
    def answers(self, logits: Tensor) -> Tensor:
        """Predictions [batch] of logits [batch, outputs], to compare with labels."""

    @abstractmethod
    def metrics(self, labels: list[Any], predictions: list[Any]) -> dict[str, float]:
        """All metrics of the predictions of a whole split."""

    def example_inputs(self, batch: int, length: int) -> Batch:
        length = min(length, self.max_length)
        ids = self.generator("example").integers(0, self.data.vocab_size, (batch, length))
        tokens = torch.from_numpy(ids)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def prepare_tokenizer(self, tokenizer: Any) -> None:
        # whoever uses the model cuts long texts where training did
        tokenizer.model_max_length = self.max_length
        if not self.uses_token_types:
            names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
            tokenizer.model_input_names = names

    def _pad(self, split: str, indices: np.ndarray) -> Batch:
        rows = [self._examples[split][int(i)] for i in indices]
        length = max(len(ids) for ids, _, _ in rows)
        ids = np.full((len(rows), length), self.data.pad_token_id or 0, dtype=np.int64)
        types, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, (tokens, type_ids, _) in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            types[row, : len(tokens)] = type_ids
            mask[row, : len(tokens)] = 1
        arrays = {"input_ids": ids, "attention_mask": mask}
        if self.uses_token_types:
            arrays["token_type_ids"] = types
        arrays["labels"] = np.array([label for _, _, label in rows], self.label_type)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
