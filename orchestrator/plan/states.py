"""How large a training state on disk is, from the model alone."""

from __future__ import annotations

from torch import Tensor, nn

from lowrank.sizes import file_size

RANDOM_BYTES = 5056
"""Of the state of torch's CPU generator."""
FACTS_BYTES, FACTS_PER_POINT = 600, 330
"""Of state.json: what it always holds, and a point of the curve with every field, as JSON."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW, beside a step count per parameter."""


def model_bytes(model: nn.Module) -> int:
    """Of what is kept of a model: parameters and buffers, tied ones under each of their names."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def state_bytes(model: nn.Module, keeps_best: bool, workers: int = 1, points: int = 0) -> int:
    """Of the files of one state that `resume.Keeper` saves.

    A pruner's own part (multipliers, moments of scores) is not told apart: a score counts like a
    weight. Masks, a byte per component, are left out.

    Args:
        model: As it is in the phase: gated, or small.
        keeps_best: Whether the best weights so far are part of the state.
        workers: Each keeps its random numbers.
        points: Of the curve so far.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensors[f"model.{name}"] = tensor
        if keeps_best:
            tensors[f"best.{name}"] = tensor
    trained = [p for p in model.parameters() if p.requires_grad]
    for number, parameter in enumerate(trained):
        tensors |= {f"optimizer.{number}.{name}": parameter.detach() for name in MOMENTS}
        tensors[f"optimizer.{number}.step"] = parameter.detach().new_empty(())
    return file_size(tensors) + workers * RANDOM_BYTES + FACTS_BYTES + points * FACTS_PER_POINT
