"""Magnitude and movement pruning of one weight matrix: by weights, blocks, rows or columns."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank.density import LinearCost
from lowrank.errors import LowRankError
from lowrank.linear import PrunedLinear, dense_weight
from lowrank.sliced import sliced

Granularity = Literal["weight", "block", "row", "column"]


class MaskedLinear(PrunedLinear):
    """y = (W * mask) x + b; the mask is set from outside, by a schedule.

    Args:
        dense: The layer to stand for.
        granularity: What is kept or removed as one: a `weight`, a square `block`, a `row` (output
            feature) or a `column` (input feature).
        block: Side of a block; must divide both sides of the matrix.
        movement: Score units by trained scores instead of magnitude: the gradient of a unit's score
            is that of its mask, sum of dL/dW * W (Sanh, Wolf, Rush 2020, arXiv 2005.07683, eq. 5).

    Raises:
        LowRankError: The block does not divide the matrix.
    """

    mask: Tensor

    def __init__(
        self,
        dense: nn.Module,
        granularity: Granularity = "weight",
        block: int = 16,
        movement: bool = False,
    ) -> None:
        super().__init__(dense)
        weight = dense_weight(dense).detach()
        out_features, in_features = weight.shape
        self.granularity = granularity
        self.unit = {
            "weight": (1, 1),
            "block": (block, block),
            "row": (1, in_features),
            "column": (out_features, 1),
        }[granularity]
        if out_features % self.unit[0] or in_features % self.unit[1]:
            raise LowRankError(
                f"blocks of {block} x {block} must divide the matrix, got "
                f"{out_features} x {in_features}"
            )
        self.grid = (out_features // self.unit[0], in_features // self.unit[1])
        self.weight = nn.Parameter(weight.clone().contiguous())
        self.register_buffer("mask", torch.ones(self.grid, device=weight.device))
        self.score = (
            nn.Parameter(torch.zeros(self.grid, device=weight.device)) if movement else None
        )
        self.train(dense.training)

    @property
    def cost(self) -> LinearCost:
        """In parameters, per unit."""
        return LinearCost(self.grid[0] * self.grid[1], self.unit[0] * self.unit[1])

    def forward(self, x: Tensor) -> Tensor:
        """[*batch, in_features] -> [*batch, out_features]."""
        mask = self.mask
        if self.score is not None:
            # the value of the mask, the gradient of the score
            mask = mask + (self.score - self.score.detach())
        return F.linear(x, self.weight * self._spread(mask).to(self.weight.dtype), self.bias)

    def scores(self) -> Tensor:
        """Mean square of each unit's weights, or its trained score; float32 [num_units], CPU."""
        if self.score is not None:
            return self.score.detach().float().flatten().cpu()
        height, width = self.unit
        square = self.weight.detach().float().square()
        blocks = square.reshape(self.grid[0], height, self.grid[1], width)
        return blocks.mean(dim=(1, 3)).flatten().cpu()

    def set_mask(self, keep: Tensor) -> None:
        """Keep the units where `keep`, bool [num_units], is set. Others can come back later."""
        self.mask.copy_(keep.reshape(self.grid))

    def compact(self, keep: Tensor) -> nn.Module:
        """A smaller matrix for rows and columns; a dense one with zeros, which stay zero in
        training, for weights and blocks."""
        kept = keep.reshape(self.grid).to(self.weight.device)
        if self.granularity in ("row", "column"):
            full = kept.expand(self.shape.out_features, self.shape.in_features)
            return sliced(self, self.weight.detach(), full.any(0), full.any(1))
        mask = self._spread(kept.float()).to(self.weight.dtype)
        dense = self.to_dense(self.weight.detach() * mask)
        keep_zeros(dense)
        return dense

    def _spread(self, values: Tensor) -> Tensor:
        """[grid] -> [out_features, in_features]."""
        if self.granularity == "weight":
            return values
        if self.granularity in ("row", "column"):
            return values.expand(self.shape.out_features, self.shape.in_features)
        height, width = self.unit
        return values.repeat_interleave(height, 0).repeat_interleave(width, 1)


def keep_zeros(layer: nn.Module) -> None:
    """Make the zeros of a layer's weight permanent: their gradient is zero from now on, so that
    any optimizer that leaves a weight without gradient and value alone (Adam with decay does)
    keeps them."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    alive = (weight.detach() != 0).to(weight.dtype)
    weight.register_hook(lambda gradient: gradient * alive.to(gradient))
