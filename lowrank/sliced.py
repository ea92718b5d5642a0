"""Pruning of whole input or output features of one layer, and the smaller layer that is left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank.gate import Gate
from lowrank.linear import PrunedLinear, dense_weight


class SlicedLinear(nn.Module):
    """y[out] = W x[in] + b, with W only for the kept features.

    Dropped input features are not read; dropped output features are their bias alone. The layer's
    interface keeps its width, so the layers around it stay as they are.

    Args:
        in_features: Of the original layer.
        out_features: Of the original layer.
        num_in: Kept input features.
        num_out: Kept output features.
        bias: Of all `out_features`.
    """

    kept_in: Tensor | None
    kept_out: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_in: int,
        num_out: int,
        bias: bool = True,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.num_in, self.num_out = num_in, num_out
        device = factory.get("device")
        self.weight = nn.Parameter(torch.empty(num_out, num_in, **factory))
        self.bias = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None
        for name, kept, total in (
            ("kept_in", num_in, in_features),
            ("kept_out", num_out, out_features),
        ):
            # int32 holds any width and is half of what torch would take
            index = torch.arange(kept, dtype=torch.int32, device=device)
            self.register_buffer(name, index if kept < total else None)

    def forward(self, x: Tensor) -> Tensor:
        """[*batch, in_features] -> [*batch, out_features]."""
        if self.kept_in is not None:
            x = x.index_select(-1, self.kept_in)
        if self.kept_out is None:
            return F.linear(x, self.weight, self.bias)
        y = F.linear(x, self.weight)
        wide = y.new_zeros((*y.shape[:-1], self.out_features))
        wide = wide.index_copy(-1, self.kept_out.long(), y)
        return wide if self.bias is None else wide + self.bias.to(wide.dtype)

    def indices_are_valid(self) -> bool:
        """Whether kept features rise and lie within the width: a damaged file may say otherwise."""
        for index, width in ((self.kept_in, self.in_features), (self.kept_out, self.out_features)):
            if index is not None and (
                index.min() < 0 or index.max() >= width or (index.diff() <= 0).any()
            ):
                return False
        return True

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, num_in={self.num_in}, num_out={self.num_out}"
        )


def sliced(layer: PrunedLinear, weight: Tensor, keep_in: Tensor, keep_out: Tensor) -> nn.Module:
    """The `SlicedLinear` for masks of kept features, or a dense layer where all are kept.

    Args:
        layer: What it stands for; gives width, bias, class.
        weight: W, [out_features, in_features].
        keep_in: Bool [in_features].
        keep_out: Bool [out_features].
    """
    if bool(keep_in.all()) and bool(keep_out.all()):
        return layer.to_dense(weight)
    parameter = next(p for p in layer.parameters() if p.ndim > 1)
    small = SlicedLinear(
        layer.shape.in_features,
        layer.shape.out_features,
        int(keep_in.sum()),
        int(keep_out.sum()),
        bias=layer.bias is not None,
        device=parameter.device,
        dtype=parameter.dtype,
    )
    with torch.no_grad():
        small.weight.copy_(weight[keep_out][:, keep_in])
        if layer.bias is not None:
            assert small.bias is not None
            small.bias.copy_(layer.bias)
        for index, keep in ((small.kept_in, keep_in), (small.kept_out, keep_out)):
            if index is not None:
                index.copy_(keep.nonzero().flatten())
    return small.train(layer.training)


class GatedInputLinear(PrunedLinear):
    """y = W diag(z) x + b: input-feature ("neuron") pruning, NP-L0 of Wang et al. 2020
    (arXiv 1910.04732, section 4.2).

    Args:
        dense: The layer to stand for.
        gate: Not yet trained.
        unit_size: Consecutive input features that share a gate; divides their number.
    """

    def __init__(self, dense: nn.Module, gate: Gate, unit_size: int = 1) -> None:
        super().__init__(dense)
        weight = dense_weight(dense)
        self.gate, self.unit_size = gate.to(weight.device), unit_size
        scale = self._spread(self.gate.value().to(weight.device))
        # Conv1D's comes transposed, and safetensors refuses views
        scaled = (weight.detach().double() / scale).to(weight).contiguous()
        self.weight = nn.Parameter(scaled)
        self.train(dense.training)

    def forward(self, x: Tensor) -> Tensor:
        """[*batch, in_features] -> [*batch, out_features]."""
        return F.linear(x * self._spread(self.gate()).to(x.dtype), self.weight, self.bias)

    def compact(self, keep: Tensor) -> nn.Module:
        rows = torch.ones(self.shape.out_features, dtype=torch.bool, device=keep.device)
        return sliced(self, self.gated_weight(), keep, rows)

    def gated_weight(self) -> Tensor:
        """W diag(z) with the gates' final value, [out_features, in_features], no gradient."""
        with torch.no_grad():
            return (self.weight.double() * self._spread(self.gate.value())).to(self.weight)

    def _spread(self, z: Tensor) -> Tensor:
        """[num_gates] -> [in_features]."""
        return z if self.unit_size == 1 else z.repeat_interleave(self.unit_size)
