"""An optimizer's moments and step counts as tensors with names, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """By the parameter's place in the groups: `3.exp_avg`."""
    return {
        f"{number}.{name}": value
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put what `optimizer_state` gave into an optimizer of the same parameters.

    Raises:
        ValueError, IndexError: It is of other parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    parameters = _parameters(optimizer)
    if len({frozenset(each) for each in state.values()}) > 1:
        raise ValueError("the optimizer must keep the same of every parameter")
    for place, each in state.items():
        for key, value in each.items():
            if value.numel() != 1 and value.shape != parameters[place].shape:
                raise ValueError(f"optimizer.{place}.{key} is of another shape")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
