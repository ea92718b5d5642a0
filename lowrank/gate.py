"""Gates: one multiplier per unit, and what it adds to the expected size.

`Gate` is what layers and controllers know. `HardConcreteGate` is the stochastic gate of the
paper; `lowrank.threshold` has the deterministic one, `lowrank.magnitude` the plain vector.

Hard concrete (Louizos, Welling, Kingma 2018, arXiv 1712.01312).

    s = sigmoid((logit(u) + log_alpha) / beta),  u ~ U(0, 1)
    z = clamp(s (r - l) + l, 0, 1),              l < 0 < 1 < r

Every expectation is that of the temperature and stretch in use. E[z] has no closed form for a
general temperature, but E[z] = int_0^1 P(z > t) dt is the integral of a smooth function, which
Gauss-Legendre quadrature gives to rounding.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.errors import LowRankError
from lowrank.shrinking import Swap, swap

QUADRATURE_NODES = 48
"""Error below 1e-7 for temperatures in [0.1, 4] and stretches of 0.05 and more (tests compare with
adaptive quadrature); stretches near zero need more nodes."""

NOISE_EPS = 1e-6
"""Uniform noise stays in [eps, 1 - eps]: logit(u) is finite in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Shape of the hard concrete distribution.

    The defaults are those of Wang et al. 2020 (arXiv 1910.04732), whose temperature of 1 also
    has the smaller variance: std(z) 0.25-0.33 against 0.27-0.39 at 2/3.
    """

    temperature: float = 1.0
    """beta > 0."""
    stretch_low: float = -0.1
    """l < 0."""
    stretch_high: float = 1.1
    """r > 1."""
    init_open_prob: float = 0.999
    """P(z > 0) at insertion. High, so that training starts near the dense model; not 1, for a
    saturated sigmoid passes no gradient."""
    price_floor: float = 0.1
    """Least gradient of the expected size in log_alpha, per component. The derivative of
    P(z > 0) vanishes for a gate that is wide open: such gates would be out of the constraint's
    reach, however high the multipliers climb. At density 0.15 the gates of a small character
    model ended at 0.36 without a floor and at 0.15 with 0.1 (docs/results/gates.md)."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise LowRankError(f"temperature > 0 must hold, got {self.temperature}")
        if not self.stretch_low < 0 < 1 < self.stretch_high:
            raise LowRankError(
                "stretch_low < 0 < 1 < stretch_high must hold, "
                f"got {self.stretch_low} and {self.stretch_high}"
            )
        if not 0 < self.init_open_prob < 1:
            raise LowRankError(f"0 < init_open_prob < 1 must hold, got {self.init_open_prob}")
        if not 0 <= self.price_floor <= 1:
            raise LowRankError(f"0 <= price_floor <= 1 must hold, got {self.price_floor}")

    @property
    def open_shift(self) -> float:
        """P(z > 0) = sigmoid(log_alpha - open_shift); beta log(-l / r)."""
        return self.temperature * math.log(-self.stretch_low / self.stretch_high)

    @property
    def init_log_alpha(self) -> float:
        p = self.init_open_prob
        return math.log(p / (1 - p)) + self.open_shift


def open_probability(log_alpha: Tensor, config: GateConfig) -> Tensor:
    """P(z > 0), float32, same shape as `log_alpha` (arXiv 1712.01312, eq. 12)."""
    return torch.sigmoid(log_alpha.float() - config.open_shift)


def priced_open_probability(log_alpha: Tensor, config: GateConfig) -> Tensor:
    """P(z > 0), with `price_floor` added to its gradient; for the penalty only."""
    log_alpha = log_alpha.float()
    return open_probability(log_alpha, config) + config.price_floor * (
        log_alpha - log_alpha.detach()
    )


def expected_value(log_alpha: Tensor, config: GateConfig) -> Tensor:
    """E[z], float32 or float64 as given, same shape as `log_alpha`."""
    log_alpha = log_alpha if log_alpha.dtype == torch.float64 else log_alpha.float()
    nodes, weights = _quadrature(config)
    thresholds = torch.tensor(nodes, dtype=log_alpha.dtype, device=log_alpha.device)
    mass = torch.tensor(weights, dtype=log_alpha.dtype, device=log_alpha.device)
    # not a matrix product: autocast would round that to bfloat16
    return (torch.sigmoid(log_alpha[..., None] - thresholds) * mass).sum(-1)


def sample(log_alpha: Tensor, uniform: Tensor, config: GateConfig) -> Tensor:
    """z for given uniform noise, differentiable in `log_alpha`; float32, same shape."""
    log_alpha, uniform = log_alpha.float(), uniform.float()
    logit = torch.log(uniform) - torch.log1p(-uniform)
    s = torch.sigmoid((logit + log_alpha) / config.temperature)
    return (s * (config.stretch_high - config.stretch_low) + config.stretch_low).clamp(0, 1)


@lru_cache(maxsize=32)
def _quadrature(config: GateConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shifts c_i and weights w_i with E[z] = sum_i w_i sigmoid(log_alpha - c_i).

    P(z > t) = sigmoid(log_alpha - beta logit((t - l) / (r - l))).
    """
    x, w = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
    t = (x + 1) / 2
    v = (t - config.stretch_low) / (config.stretch_high - config.stretch_low)
    shifts = config.temperature * np.log(v / (1 - v))
    return tuple(shifts.tolist()), tuple((w / 2).tolist())


class Gate(nn.Module):
    """One multiplier per unit of a layer.

    Parameters stay float32 whatever dtype the model is moved to: expected sizes and saturated
    gates do not survive rounding to half precision.
    """

    PER_UNIT: ClassVar[tuple[str, ...]] = ()
    """Buffers with an entry per unit."""

    parameter: nn.Parameter
    """Score per unit, float32 [num_gates]; the higher, the rather the unit stays."""

    @abstractmethod
    def forward(self) -> Tensor:
        """z, [num_gates], float32: the sample in training mode, `value` in evaluation mode."""

    @abstractmethod
    def value(self) -> Tensor:
        """The multiplier to fold into the weights, float64 [num_gates], no gradient."""

    @abstractmethod
    def kept(self) -> Tensor:
        """Expected fraction of each unit that is kept, with the gradient that the penalty needs;
        float32 [num_gates], in [0, 1]."""

    def begin_step(self, progress: float, generator: torch.Generator) -> None:
        """Called before the first step and after every step, at the same point of one common
        stream on all workers.

        Args:
            progress: Done part of the gated phase, in [0, 1].
            generator: On the CPU; a gate draws what it needs.
        """

    def drop(self, keep: Tensor) -> Swap:
        """Become the gate of fewer units, bool [num_gates]."""
        found = swap(self.parameter, 0, keep)
        self.parameter = found.new
        for name in self.PER_UNIT:
            buffer = self.get_buffer(name)
            setattr(self, name, buffer[keep.to(buffer.device)])
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gate:
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            # from the original, not from the rounded copy
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_float32, recurse)


class HardConcreteGate(Gate):
    """Stochastic gates, one sample per step.

    In training mode the gate is the sample of the current noise; every use within a step, and
    every worker, sees the same one, because the noise is drawn from outside, once per step
    (`Pruner.step`). In evaluation mode it is E[z].
    """

    PER_UNIT = ("noise",)

    noise: Tensor

    def __init__(self, num_gates: int, config: GateConfig) -> None:
        super().__init__()
        self.config = config
        self.parameter = nn.Parameter(torch.full((num_gates,), config.init_log_alpha))
        self.register_buffer("noise", torch.full((num_gates,), 0.5), persistent=False)

    @property
    def log_alpha(self) -> nn.Parameter:
        """The paper's name of the parameter."""
        return self.parameter

    def forward(self) -> Tensor:
        if self.training:
            return sample(self.parameter, self.noise, self.config)
        return expected_value(self.parameter, self.config)

    def value(self) -> Tensor:
        with torch.no_grad():
            return expected_value(self.parameter.double(), self.config)

    def kept(self) -> Tensor:
        """P(z > 0)."""
        return priced_open_probability(self.parameter, self.config)

    def begin_step(self, progress: float, generator: torch.Generator) -> None:
        uniform = torch.rand(self.noise.shape, generator=generator)
        self.noise.copy_(uniform.clamp(NOISE_EPS, 1 - NOISE_EPS))
