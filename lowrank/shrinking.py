"""Closed components leave the model while it trains: every later step is cheaper.

New parameters take the places of old ones; optimizers are made to follow, with the part of their
state that belongs to what stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank.density import Cost, filled_up
from lowrank.errors import LowRankError

LEAST_PART = 0.05
"""Of all components, to be taken out at once: a smaller gain is not worth new buckets of gradients
and, for compiled models, new code."""

TIMES = 20
"""Looks for closed components over the gated phase: each waits for the device, and what leaves
costs new buckets and new code. Half as many would carry dead components for 5 % of the steps."""


@dataclass(frozen=True, slots=True)
class Swap:
    """One parameter of a smaller layer, for one of the layer as it was."""

    old: nn.Parameter
    new: nn.Parameter
    dim: int
    keep: Tensor
    """Which entries along `dim` stay, bool."""


def swap(old: nn.Parameter, dim: int, keep: Tensor) -> Swap:
    """A parameter with the entries that stay, and no gradient."""
    part = _kept(old.detach(), dim, keep)
    return Swap(old, nn.Parameter(part, old.requires_grad), dim, keep)


def follow(optimizer: torch.optim.Optimizer, swaps: Iterable[Swap]) -> None:
    """Give an optimizer the new parameters, and of the old ones' state what belongs to them."""
    by_old = {id(each.old): each for each in swaps}
    for group in optimizer.param_groups:
        group["params"] = [by_old[id(p)].new if id(p) in by_old else p for p in group["params"]]
    for each in by_old.values():
        state = optimizer.state.pop(each.old, None)
        if state is not None:
            optimizer.state[each.new] = {
                # step counts are scalars
                name: _kept(value, each.dim, each.keep)
                if isinstance(value, Tensor) and value.shape == each.old.shape
                else value
                for name, value in state.items()
            }


def components_to_keep(
    scores: Mapping[str, Tensor],
    dead: Mapping[str, Tensor],
    least: Mapping[str, int],
    costs: Mapping[str, Cost],
) -> dict[str, Tensor]:
    """What is not dead, the best of each layer up to its floor, and dead ones that cost nothing
    beside these.

    Args:
        scores: Importance of the components, [num_components] each.
        dead: Which are surely closed, bool, under some of the same names.
        least: Components that each layer has to keep.
        costs: Of the layers' components.

    Returns:
        Masks of the layers that lose something; nothing if all of them together would lose less
        than `LEAST_PART`.
    """
    keep = {}
    for name, closed in dead.items():
        alive = int((~closed).sum())
        wanted = filled_up(costs[name], max(alive, least[name]))
        if wanted < len(closed):
            # dead ones come last whatever their score
            rank = scores[name].double() - closed * (2 * scores[name].abs().max().double() + 1)
            best = torch.argsort(rank, descending=True, stable=True)[:wanted]
            keep[name] = torch.zeros(len(closed), dtype=torch.bool)
            keep[name][best] = True
    lost = sum(int((~mask).sum()) for mask in keep.values())
    total = sum(len(score) for score in scores.values())
    return keep if lost and lost >= LEAST_PART * total else {}


def masks_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The masks of a state under a prefix, by layer."""
    found = {n: mask for n, mask in state.items() if n.startswith(prefix)}
    return {name.removeprefix(prefix): mask.bool() for name, mask in found.items()}


def check_masks(masks: Mapping[str, Tensor], num_units: Mapping[str, int]) -> None:
    """Raise LowRankError unless there is one mask per layer, as long as the layer has units."""
    for name in {**num_units, **masks}:
        found = len(masks.get(name, ()))
        if found != num_units.get(name, 0):
            raise LowRankError(
                f"the state has {found} units of layer {name!r}, the pruner "
                f"{num_units.get(name, 0)}: it belongs to another model or method"
            )


def of_the_start(keep: Tensor, present: Tensor | None) -> Tensor:
    """A mask of the units that are there, as one of those that were there at the start."""
    if present is None:
        return keep.cpu()
    full = present.clone()
    full[present] = keep.cpu()
    return full


def _kept(tensor: Tensor, dim: int, keep: Tensor) -> Tensor:
    return tensor.index_select(dim, keep.nonzero().flatten().to(tensor.device))
