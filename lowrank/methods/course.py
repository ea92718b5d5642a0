"""How the density and the temperature of threshold gates change from step to step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowrank.errors import LowRankError
from lowrank.magnitude import cubic_density

TEMPERATURES = (0.05, 0.01, 1e-5)
"""At the start, when the target is reached, and at the end, in units of the scores, whose range is
1. At first a fifth of a layer's components is neither open nor shut. A component that is half open
counts half and serves nearly as well, so trained scores gather at the threshold; in the last part
they rest, and T falls until their order alone decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """Some gated steps: the density falls cubically, then gates harden."""

    start: float
    """Density at the first step."""
    end: float
    """Density from the end of the anneal on."""
    steps: int
    anneal_fraction: float
    """Part of the steps over which the density falls; in the rest gates harden. 1: they stay as
    soft as they are when the density is reached, for a descent that goes on from there."""
    warmest: float = TEMPERATURES[0]
    """T at the first step."""

    def towards(self, density: float, steps: int, reached: float | None) -> Course:
        """A part of a descent; see `Pruner.aim`."""
        if reached is None:
            return replace(self, end=density, steps=steps, anneal_fraction=1.0)
        if density > reached:
            raise LowRankError(f"density <= reached must hold, got {density} and {reached}")
        return Course(
            start=reached,
            end=density,
            steps=steps,
            anneal_fraction=float(density < reached),
            warmest=TEMPERATURES[1],
        )

    def hardens(self, step: int) -> bool:
        return self._progress(step) >= self.anneal_fraction

    def temperature(self, step: int) -> float:
        """T, geometric within the anneal and within what follows it."""
        _, middle, end = TEMPERATURES
        turn, progress = self.anneal_fraction, self._progress(step)
        if not self.hardens(step):
            return self.warmest * (middle / self.warmest) ** (progress / turn)
        return middle * (end / middle) ** ((progress - turn) / max(1e-9, 1 - turn))

    def target(self, step: int) -> float:
        """Density of the gates at a step."""
        length = max(1.0, self.anneal_fraction * self.steps)
        fraction = cubic_density(step / length, 0.0)
        return self.end + max(0.0, self.start - self.end) * fraction

    def _progress(self, step: int) -> float:
        return min(1.0, step / max(1, self.steps))
