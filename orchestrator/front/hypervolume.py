"""How much a front covers, up to a reference point."""

from __future__ import annotations

import math

import moocore
import numpy as np
from numpy.typing import ArrayLike

from orchestrator.front.dominance import checked


def hypervolume(loss_values: ArrayLike, reference: ArrayLike) -> float:
    """The measure of what the rows dominate, up to a reference point (Zitzler and Thiele 1998).

    Rows that are not better than the reference in every objective add nothing, nor do rows with a
    NaN. The result is exact up to rounding, and infinite if a row or the reference is.

    Args:
        loss_values: [n, m], m >= 2.
        reference: [m], the worst value of each objective that still counts.
    """
    losses = checked(loss_values)
    worst = np.asarray(reference, dtype=np.float64)
    if losses.shape[1] < 2 or worst.shape != losses.shape[1:]:
        raise ValueError(
            "loss_values [n, m] and reference [m] with m >= 2 are needed, "
            f"got {losses.shape} and {worst.shape}"
        )
    if np.isnan(worst).any():
        raise ValueError(f"the reference must not be NaN, got {worst.tolist()}")
    inside = losses[(losses < worst).all(axis=1)]
    if not len(inside):
        return 0.0
    if not (np.isfinite(inside).all() and np.isfinite(worst).all()):
        return math.inf
    return float(moocore.hypervolume(inside, ref=worst))
