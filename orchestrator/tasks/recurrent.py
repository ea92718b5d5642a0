"""Causal language modelling with models that carry a state from one window to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.data.prepare import PreparedData
from orchestrator.errors import DataError
from orchestrator.spec_tasks import LanguageModelling
from orchestrator.tasks.base import Batch, Role
from orchestrator.tasks.language_modelling import EVALUATION_BATCH_TOKENS, LanguageModellingTask

EVALUATION_LANES = 16
"""Parts of an evaluation split that are read side by side. A constant, so that results do not
depend on the number of workers; each lane begins without a past, which costs a few nats each."""

IGNORED = -100
"""Label of a place that is not predicted, as in torch's cross-entropy."""


class RecurrentLanguageModellingTask(LanguageModellingTask):
    """Next-token prediction by truncated back-propagation through time.

    Training: the stream is cut into windows of `context` tokens, and row i of the batches reads
    them one after the other from the i-th `batch`-th of the stream on; after the last window it
    goes on with the first. A step starts from the state that the step before it left, without its
    gradient; at the first window of the stream, and at the first step of a stretch of training,
    the state is zero. Where the windows begin, and which comes first, follows from the seed.

    Evaluation: `EVALUATION_LANES` equal parts of the split, each read from its start to its end
    with the state carried along: every token but the first of the split is predicted exactly
    once, with all of its lane before it for context. The length of the pieces does not matter.
    """

    def __init__(self, spec: LanguageModelling, data: PreparedData, seed: int) -> None:
        super().__init__(spec, data, seed)
        self._num_windows, spare = divmod(len(self._train) - 1, self.context)
        if self._num_windows < 1:
            raise DataError(
                f"train must have more than `context` tokens, got {len(self._train)} and "
                f"{self.context}"
            )
        draw = self.generator("lanes")
        self._start = int(draw.integers(spare + 1))
        self._shift = int(draw.integers(self._num_windows))
        self._states: dict[Role, Tensor] = {}

    def global_batch(self, step: int) -> np.ndarray:
        lanes = np.arange(self.batch_size) * self._num_windows // self.batch_size
        windows = (self._shift + lanes + step) % self._num_windows
        return self._start + windows * self.context

    def collate(self, indices: np.ndarray) -> Batch:
        """Also `begins`, bool [batch]: rows at the start of the stream, which have no past."""
        return super().collate(indices) | {"begins": torch.from_numpy(indices == self._start)}

    def begin_stretch(self) -> None:
        self._states = {}

    def memory(self) -> dict[str, Tensor]:
        return {str(role): state for role, state in self._states.items()}

    def remember(self, memory: dict[str, Tensor]) -> None:
        self._states = {role: memory[role] for role in get_args(Role) if role in memory}

    def shared_out(
        self, memories: list[dict[str, Tensor]], rank: int, world: int
    ) -> dict[str, Tensor]:
        found = {}
        for role in memories[0]:
            parts = [memory[role] for memory in memories]
            rows = sum(part.shape[1] for part in parts)
            # [layers, rows, width]: each worker has every so many-th row
            whole = parts[0].new_empty(parts[0].shape[0], rows, *parts[0].shape[2:])
            for number, part in enumerate(parts):
                whole[:, number :: len(parts)] = part
            found[role] = whole[:, rank::world].clone()
        return found

    def output(self, model: nn.Module, inputs: Batch, role: Role, **options: Any) -> Any:
        inputs = dict(inputs)
        begins = inputs.pop("begins")
        if role in self._states:
            # the state of a distributed worker is that of its own rows, the same at every step
            inputs["state"] = self._states[role].masked_fill(begins[None, :, None], 0)
        output = model(**inputs, **options)
        self._states[role] = output.state.detach()
        return output

    def model_inputs(self, batch: Batch) -> Batch:
        return {k: v for k, v in super().model_inputs(batch).items() if k != "begins"}

    def evaluate_shard(self, model: nn.Module, split: str, rank: int, world: int) -> Any:
        """Total nats and number of predictions of this worker's lanes."""
        device = next(model.parameters()).device
        nats, count, state = 0.0, 0, None
        with torch.inference_mode():
            for ids, labels in self._lanes(split, rank, world):
                output = model(input_ids=ids.to(device), state=state)
                state = output.state
                logits, wanted = output.logits.float().flatten(0, 1), labels.flatten().to(device)
                loss = F.cross_entropy(logits, wanted, reduction="sum", ignore_index=IGNORED)
                nats += float(loss.double())
                count += int((labels != IGNORED).sum())
        return [nats, count]

    def _lanes(self, split: str, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of a worker's lanes, piece by piece, each [lanes, piece]."""
        tokens = self.data.tokens(split)
        last = len(tokens) - 1
        edges = np.arange(EVALUATION_LANES + 1) * last // EVALUATION_LANES
        starts, ends = edges[:-1][rank::world, None], edges[1:][rank::world, None]
        if not len(starts):
            return
        longest = int((ends - starts).max())
        piece = min(self.context, EVALUATION_BATCH_TOKENS // EVALUATION_LANES)
        for offset in range(0, longest, piece):
            places = starts + np.arange(offset, min(offset + piece, longest))
            # lanes differ by one token: the shorter ones end with a place that does not count
            ids = tokens[np.minimum(places, last)].astype(np.int64)
            following = tokens[np.minimum(places + 1, last)].astype(np.int64)
            labels = np.where(places < ends, following, IGNORED)
            yield torch.from_numpy(ids), torch.from_numpy(labels)
