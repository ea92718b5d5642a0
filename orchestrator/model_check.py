"""One pass of a model before it is trained."""

from __future__ import annotations

import torch
from torch import nn

from orchestrator.errors import ModelError
from orchestrator.tasks import TrainingTask


def check_pass(model: nn.Module, task: TrainingTask) -> None:
    """One pass at the task's full length: otherwise the first long example ends the training."""
    device = next(model.parameters()).device
    inputs = {k: v.to(device) for k, v in task.example_inputs(1, task.max_length).items()}
    try:
        with torch.no_grad():
            model.eval()(**inputs)
    except Exception as error:  # models raise many kinds
        limit = getattr(model.config, "max_position_embeddings", None)
        known = f", its config has max_position_embeddings {limit}" if limit else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the model fails on {task.max_length} tokens (`context` or `max_length`){known}: "
            f"{reason}"
        ) from error
