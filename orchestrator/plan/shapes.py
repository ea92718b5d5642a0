"""Sizes from a model's shapes alone, for a plan without a probe: bytes and no hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import lowrank
from lowrank.density import LayerShape
from lowrank.export import distinct_tensors
from lowrank.prunable import prunable_shape
from lowrank.sizes import file_size
from lowrank.surgery import find_layers
from orchestrator.data.prepare import PreparedData
from orchestrator.plan.disk import size_of
from orchestrator.plan.figures import JobCost, Range
from orchestrator.plan.profile import TaskProfile
from orchestrator.plan.states import model_bytes, state_bytes
from orchestrator.plan.work import DENSE, FINETUNE, GATED, ModelWork, TaskWork
from orchestrator.spec import CampaignSpec
from orchestrator.spec_tasks import AnyTask

DESCRIPTION_BYTES, TENSOR_BYTES, FORM_BYTES = 1_800, 95, 380
"""Of an export besides weights, tokenizer and reference answers: config and manifest, a line of the
latter for each tensor, and in both what each compressed layer is."""
ANSWERED_TOKENS = 28
"""Whose logits are kept as reference answers (`lowrank.contract.SHAPES`)."""
FACTOR_BYTES = 113
"""Of the header of a weights file, for a matrix that is two."""
RECORD_BYTES, METHOD_BYTES, LAYER_BYTES = 1_050, 1_250, 125
"""Of record.json: figures, and of a trial its method and the ranks of a layer."""
POINT_BYTES, TRIAL_POINT_BYTES = 322.0, 350.0
"""Of a point of the curve in it."""
ZEROS = ("weight", "block")
"""What `agp` removes and yet stores."""
LOGGED_BYTES = 5_500
"""That MLflow adds to a logged model besides the library's source."""


def shapes_profile(
    spec: CampaignSpec,
    task: AnyTask,
    work: TaskWork,
    data: PreparedData,
    described: dict[str, Any],
    model: nn.Module,
) -> TaskProfile:
    """Costs of which only the bytes are known.

    Args:
        spec: The campaign.
        task: One of its tasks.
        work: Counted.
        data: Prepared.
        described: Of the task.
        model: The dense one, trained or not.
    """
    # MLflow leaves out what Python has compiled
    folder = Path(lowrank.__file__).parent
    sources = sum(path.stat().st_size for path in folder.rglob("*.py"))
    method = spec.method_of(task)
    layers = find_layers(model, method.include, method.exclude, method.embeddings).layers
    shapes = [prunable_shape(layer) for layer in layers.values()]
    pruned = 4 * sum(shape.num_dense for shape in shapes)
    tensors, _ = distinct_tensors(model)
    kept = model_bytes(model)
    resting, training = (state_bytes(model, best, work.workers) for best in (False, True))
    export = _Export(
        weights=file_size(tensors),
        pruned=pruned,
        beside=size_of(data.tokenizer_folder)
        + DESCRIPTION_BYTES
        + TENSOR_BYTES * len(tensors)
        + 4 * ANSWERED_TOKENS * (data.vocab_size if task.kind == "language-modelling" else 1),
        layers=len(layers),
    )
    costs = [export.cost(DENSE, 1.0, {DENSE: training})]
    for trial in work.trials:
        if any(c.setting == trial.setting and c.density == trial.density for c in costs):
            continue
        zeros = trial.method["kind"] == "agp" and trial.method["granularity"] in ZEROS
        stored = 1.0 if zeros else trial.density
        part = 1 - (1 - stored) * pruned / kept
        begins = 1 + (start_density(trial, shapes) - 1) * pruned / kept
        states = {GATED: begins * resting, FINETUNE: part * training}
        costs.append(export.cost(trial.setting, trial.density, states, stored))
    return TaskProfile(
        described=described,
        costs=costs,
        timing_s=Range(),
        int8_s=Range(),
        logged_bytes=sources + LOGGED_BYTES,
        world=0,
        groups=0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Export:
    """Bytes of a dense model's export, and what of it is pruned."""

    weights: int
    pruned: int
    """Of the matched matrices."""
    beside: int
    """Of all files but the weights."""
    layers: int

    def cost(
        self, setting: str, density: float, states: dict[str, float], stored: float = 1.0
    ) -> JobCost:
        """Of one kind of training.

        Args:
            setting: Of the method, or DENSE.
            density: Of the matched matrices.
            states: Phase -> bytes of a state in it.
            stored: Part of the matched matrices that is in the file.
        """
        layers = 0 if setting == DENSE else self.layers
        trial_bytes = 0 if setting == DENSE else METHOD_BYTES + layers * LAYER_BYTES
        # in proportion to the weights
        weights = round(self.weights - (1 - stored) * self.pruned)
        return JobCost(
            setting=setting,
            density=density,
            setup_s=Range(),
            step_s={},
            projection_s=Range(),
            export_s=Range(),
            validation_s={},
            test_s=Range(),
            model_bytes={},
            state_bytes={phase: round(size) for phase, size in states.items()},
            weights_bytes=weights + FACTOR_BYTES * layers,
            export_bytes=self.beside + FORM_BYTES * layers,
            record_bytes=RECORD_BYTES + trial_bytes,
            point_bytes=POINT_BYTES if setting == DENSE else TRIAL_POINT_BYTES,
            memory_bytes=0,
        )


def start_density(trial: ModelWork, shapes: Sequence[LayerShape]) -> float:
    """Parameters of the pruned matrices at the start of a trial, of the dense ones."""
    kind, method = trial.method["kind"], trial.method
    if kind == "adaptive":
        return float(min(1.0, method["start_excess"] * trial.density))
    full_rank = method.get("start_rank") != "break-even" and kind in ("flop-l0", "flop-agp")
    if kind == "faithful" or full_rank:
        factors = sum(shape.full_rank * shape.num_per_component for shape in shapes)
        return factors / sum(shape.num_dense for shape in shapes)
    if kind == "low-rank":
        return trial.density
    scores = kind == "agp" and method.get("movement")
    return 2.0 if scores else 1.0
