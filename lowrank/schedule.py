"""Step -> value: the target density, and the learning rate."""

from __future__ import annotations

import math


def linear_anneal(step: int, start: float, end: float, num_steps: int) -> float:
    """From `start` at step 0 to `end` at step `num_steps`, then `end` (arXiv 1910.04732, 3.3)."""
    if num_steps <= 0:
        return end
    progress = min(max(step, 0) / num_steps, 1.0)
    return start + (end - start) * progress


def warmup_cosine(
    step: int, num_steps: int, warmup_fraction: float = 0.05, floor: float = 0.1
) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine from 1 down to `floor`.

    A floor of a tenth follows Hoffmann et al. 2022 (arXiv 2203.15556, appendix B).
    """
    warmup = max(1, math.ceil(warmup_fraction * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
