"""The forms of a factorized layer: gated while it is pruned, plain once it is compacted.

Weights follow nn.Linear, [out, in]. transformers' Conv1D stores the transpose; it is turned
round on the way in and on the way out, and nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank.density import LayerShape
from lowrank.factorize import Factorization, bias_shift, factorize
from lowrank.gate import Gate
from lowrank.pruned import GatedFactors, PrunedLayer


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D; told by name, so that transformers stays optional."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_matrix_layer(module: nn.Module) -> bool:
    """Whether the module computes y = W x + b with one plain matrix that can be factorized."""
    return type(module) is nn.Linear or is_conv1d(module)


def dense_weight(module: nn.Module) -> Tensor:
    """W as [out_features, in_features]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.t() if is_conv1d(module) else weight


def layer_shape(module: nn.Module) -> LayerShape:
    out_features, in_features = dense_weight(module).shape
    return LayerShape(in_features, out_features)


class LowRankLinear(nn.Linear):
    """y = (x Qᵀ) Pᵀ + b: what a pruned layer is at inference. No gate, two plain products.

    P is called `weight` and Q `projection`. In a file P stands where the matrix stood, in another
    shape: whoever reads the file without this class is stopped by it, where missing names would
    only be filled with random numbers.

    Args:
        in_features: Width of x.
        out_features: Width of y.
        rank: Of the factors, >= 0.
        bias: Whether there is a b.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, **factory: Any
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would draw a matrix that is not used
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight = nn.Parameter(torch.empty(out_features, rank, **factory))
        self.projection = nn.Parameter(torch.empty(rank, in_features, **factory))
        shift = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None
        self.register_parameter("bias", shift)
        if rank:
            for factor in (self.weight, self.projection):
                nn.init.kaiming_uniform_(factor, a=5**0.5)  # as nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """[*batch, in_features] -> [*batch, out_features]."""
        return F.linear(F.linear(input, self.projection), self.weight, self.bias)

    def as_two_layers(self) -> nn.Sequential:
        """The same as two nn.Linear, which share the parameters: for tools that replace these."""
        with torch.device("meta"):
            down = nn.Linear(self.in_features, self.rank, bias=False)
            up = nn.Linear(self.rank, self.out_features, bias=False)
        down.weight, up.weight = self.projection, self.weight
        up.register_parameter("bias", self.bias)
        return nn.Sequential(down, up).train(self.training)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"


class PrunedLinear(PrunedLayer):
    """What stands for a linear layer while it is pruned.

    Args:
        dense: The linear layer.
    """

    bias: nn.Parameter | None

    def __init__(self, dense: nn.Module) -> None:
        super().__init__(layer_shape(dense))
        self._dense_class = type(dense)
        bias = dense.bias
        self.bias = bias if isinstance(bias, nn.Parameter) else None

    def to_dense(self, weight: Tensor) -> nn.Module:
        """A layer of the original class with this weight, [out_features, in_features]."""
        shape, dense_class = self.shape, self._dense_class
        device, dtype = next((p.device, p.dtype) for p in self.parameters() if p.ndim > 1)
        # on the meta device, so that no initialization is drawn from the global generator
        with torch.device("meta"):
            if dense_class is nn.Linear:
                dense: nn.Module = nn.Linear(
                    shape.in_features, shape.out_features, bias=self.bias is not None, dtype=dtype
                )
            else:
                dense = dense_class(shape.out_features, shape.in_features).to(dtype)
                weight = weight.t()
        dense = dense.to_empty(device=device)
        with torch.no_grad():
            assert isinstance(dense.weight, Tensor)
            dense.weight.copy_(weight)
            if self.bias is not None:
                assert isinstance(dense.bias, Tensor)
                dense.bias.copy_(self.bias)
        return dense.train(self.training)


class GatedLinear(PrunedLinear, GatedFactors):
    """y = P diag(z) Q x + b (Wang et al. 2020, arXiv 1910.04732, eq. 4).

    P is divided by the gates' value at insertion, so that in evaluation mode the new layer
    computes what its factors do, for any initial gate.

    Args:
        dense: The layer to stand for.
        gate: One gate per component, not yet trained.
        factors: Start of P and Q; by default the full-rank SVD of the weight.
        mean: Mean input, [in_features]: what a removed component contributed on average moves
            into the bias. None leaves the bias alone.
    """

    mean: Tensor | None

    def __init__(
        self,
        dense: nn.Module,
        gate: Gate,
        factors: Factorization | None = None,
        mean: Tensor | None = None,
    ) -> None:
        super().__init__(dense)
        weight = dense_weight(dense)
        factors = factors or factorize(weight)
        self.gate = gate.to(weight.device)
        scale = self.gate.value().to(weight.device)
        self.down = nn.Parameter(factors.down.to(weight))
        self.up = nn.Parameter((factors.up.double() / scale).to(weight))
        kept_mean = None if mean is None or self.bias is None else mean.to(weight.device).double()
        self.register_buffer("mean", kept_mean, persistent=False)
        self.energy = factors.energy
        if self.bias is not None and kept_mean is not None:
            with torch.no_grad():
                left_out = weight.double() - factors.up.to(kept_mean) @ factors.down.to(kept_mean)
                # a new one: another layer may hold the same bias
                shifted = self.bias + bias_shift(left_out, kept_mean).to(self.bias)
            self.bias = nn.Parameter(shifted, self.bias.requires_grad)
        self.train(dense.training)

    @property
    def weight(self) -> Tensor:
        """Without elements: tells its dtype and device (T5 asks before `wo`), and fails whoever
        multiplies by it, as models must that pass the layer by."""
        return self.up.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """[*batch, in_features] -> [*batch, out_features]."""
        if self._is_cheaper_multiplied_out(x.numel() // x.shape[-1]):
            return F.linear(x, (self.up * self.gate().to(self.up.dtype)) @ self.down, self.bias)
        hidden = F.linear(x, self.down)
        return F.linear(hidden * self.gate().to(hidden.dtype), self.up, self.bias)

    def _is_cheaper_multiplied_out(self, rows: int) -> bool:
        """Whether P diag(z) Q takes fewer products than it saves on these rows of x. Only above
        break-even, and with more rows than a layer has features."""
        shape, rank = self.shape, self.num_components
        saved = rows * (rank * shape.num_per_component - shape.num_dense)
        return rank * shape.num_dense < saved

    def compact(self, keep: Tensor) -> nn.Module:
        """Gates folded into P.

        Returns:
            A `LowRankLinear`, or a dense layer of the original class where the factors would not
            be smaller than the matrix.
        """
        with torch.no_grad():
            up = self.up.double() * self.gate.value()
            down = self.down.double()
            removed = up[:, ~keep] @ down[~keep]
            up, down = up[:, keep], down[keep]
            small: nn.Module
            if int(keep.sum()) >= self.dense_from:
                small = self.to_dense(up @ down)
            else:
                small = self._to_low_rank(up, down)
            if self.mean is not None:
                # into the copy: this layer stays as it is
                bias = small.bias
                assert isinstance(bias, Tensor)
                bias.add_(bias_shift(removed, self.mean).to(bias))
            return small

    def _to_low_rank(self, up: Tensor, down: Tensor) -> LowRankLinear:
        small = LowRankLinear(
            self.shape.in_features,
            self.shape.out_features,
            rank=len(down),
            bias=self.bias is not None,
            device="meta",
            dtype=self.up.dtype,
        ).to_empty(device=self.up.device)
        small.projection.copy_(down)
        small.weight.copy_(up)
        if self.bias is not None:
            small.bias.copy_(self.bias)
        return small.train(self.training)

    def extra_repr(self) -> str:
        shape = self.shape
        return f"{shape.in_features}, {shape.out_features}, gates={self.num_components}"
