"""Causal language modelling on a token stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lowrank.metrics import bits_per_character, perplexity
from orchestrator.data.prepare import PreparedData
from orchestrator.records import Metric
from orchestrator.spec_tasks import LanguageModelling
from orchestrator.tasks.base import Batch, TrainingTask

EVALUATION_BATCH_TOKENS = 8192
"""Windows evaluated at once: enough to fill the cores, small beside the logits of a large
vocabulary. A constant, so that results do not depend on the training batch."""


class LanguageModellingTask(TrainingTask):
    """Next-token prediction on windows of `context` tokens.

    Training windows start anywhere. Evaluation windows follow each other without overlap (stride
    = context): every token but the first of the split is predicted exactly once, with between 1
    and `context` tokens before it. Perplexity depends on that choice, so it is part of the data
    record.
    """

    def __init__(self, spec: LanguageModelling, data: PreparedData, seed: int) -> None:
        super().__init__(data, spec.dense.batch, seed)
        self.context = self.max_length = spec.context
        name = "bits_per_character" if spec.level == "character" else "perplexity_token"
        self.metric = Metric(name=name, higher_is_better=False)
        self._train = data.tokens("train")

    def global_batch(self, step: int) -> np.ndarray:
        last_start = len(self._train) - self.context - 1
        return self.generator("windows", step).integers(0, last_start + 1, self.batch_size)

    def collate(self, indices: np.ndarray) -> Batch:
        windows = np.stack([self._train[i : i + self.context + 1] for i in indices])
        return _shifted(windows)

    def evaluate_shard(self, model: nn.Module, split: str, rank: int, world: int) -> Any:
        """Total nats and number of predictions of this worker's windows."""
        tokens = self.data.tokens(split)
        starts = np.arange(0, len(tokens) - 1, self.context)
        whole = starts[starts + self.context + 1 <= len(tokens)]
        per_batch = max(1, EVALUATION_BATCH_TOKENS // self.context)
        chunks = [whole[i : i + per_batch] for i in range(0, len(whole), per_batch)]
        windows = [
            np.stack([tokens[i : i + self.context + 1] for i in c]) for c in chunks[rank::world]
        ]
        if rank == 0 and len(whole) < len(starts):
            windows.append(np.asarray(tokens[starts[-1] :])[None])
        nats, count = 0.0, 0
        for batch in windows:
            inputs = _shifted(batch)
            nats += self._nats(model, inputs)
            count += inputs["labels"].numel()
        return [nats, count]

    def _nats(self, model: nn.Module, batch: Batch) -> float:
        """Summed over the predictions of an evaluation batch."""
        device = next(model.parameters()).device
        with torch.inference_mode():
            logits = model(input_ids=batch["input_ids"].to(device)).logits
            loss = F.cross_entropy(
                logits.float().flatten(0, 1), batch["labels"].to(device).flatten(), reduction="sum"
            )
        return float(loss.double())

    def combine(self, shards: list[Any], split: str) -> dict[str, float]:
        nats = sum(shard[0] for shard in shards)
        count = sum(shard[1] for shard in shards)
        info = self.data.info["splits"][split]
        # the first token of a split is given, not predicted; its words and characters are
        # prorated so that "per word" and "per token" speak of the same text
        share = count / info["num_tokens"]
        metrics = {
            "loss_nats": nats / count,
            "perplexity_token": perplexity(nats, count),
            "bits_per_character": bits_per_character(nats, info["num_characters"] * share),
        }
        if info["num_words"]:
            per_word = perplexity(nats, info["num_words"] * share)
            # text that hardly uses white space overflows, and records hold finite numbers only
            if math.isfinite(per_word):
                metrics["perplexity_word"] = per_word
        return metrics

    def example_inputs(self, batch: int, length: int) -> Batch:
        length = min(length, self.context)
        ids = self.generator("example").integers(0, self.data.vocab_size, (batch, length))
        return {"input_ids": torch.from_numpy(ids)}


def _shifted(windows: np.ndarray) -> Batch:
    tokens = torch.from_numpy(windows.astype(np.int64))
    return {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
