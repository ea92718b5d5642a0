"""Fronts drawn again: how often a setting is on the front, and between what its volume lies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.front.dominance import Losses, epsilon_front, pareto_front
from orchestrator.front.hypervolume import hypervolume
from orchestrator.front.noise import LEVEL, SeedNoise

DRAWS = 1000
"""A probability of a half is then known to 3 points (two standard errors)."""
_FARTHEST = 5.0
"""Standard errors beyond which a timing is not drawn: one in two million is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Settings as they were measured, with what disturbs them."""

    losses: Losses
    """[n, 2 or 3]: quality, size and logarithm of the latency."""
    num_runs: NDArray[np.int64]
    """[n], over which the quality is the mean."""
    noise: SeedNoise | None
    timing_error: NDArray[np.float64]
    """[n], standard errors of the logarithm of the latency."""

    def only(self, rows: NDArray[np.int64]) -> Measured:
        return Measured(
            losses=self.losses[rows],
            num_runs=self.num_runs[rows],
            noise=self.noise,
            timing_error=self.timing_error[rows],
        )


def front_probability(draws: Iterable[Losses]) -> NDArray[np.float64]:
    """Part of the draws in which each row is on the front.

    Args:
        draws: Losses [n, m], at least one.
    """
    masks = [pareto_front(losses) for losses in draws]
    return np.mean(masks, axis=0)


def resampled(measured: Measured, draws: int, seed: int) -> Iterator[Losses]:
    """The settings as they might have been measured.

    To each mean the mean of as many residuals is added as it had runs, drawn from those of all
    settings with replacement. With few residuals their spread is itself uncertain: in each draw it
    is stretched by sqrt(nu / chi2_nu), as in Student's t. Timings get normal errors. Sizes are
    exact.
    """
    rng = np.random.default_rng(seed)
    stretch = _stretches(measured.noise, draws, seed)
    most = int(measured.num_runs.max(initial=1))
    counted = np.arange(most) < measured.num_runs[:, None]
    for factor in stretch:
        losses = measured.losses.copy()
        if measured.noise is not None:
            picked = rng.choice(measured.noise.residuals, size=counted.shape)
            losses[:, 0] += factor * (picked * counted).sum(axis=1) / measured.num_runs
        if losses.shape[1] > 2:
            normal = rng.standard_normal(len(losses)).clip(-_FARTHEST, _FARTHEST)
            losses[:, 2] += measured.timing_error * normal
        yield losses


def _stretches(noise: SeedNoise | None, draws: int, seed: int) -> NDArray[np.float64]:
    if noise is None:
        return np.ones(draws)
    freedom = noise.degrees_of_freedom
    # a stream of its own, so that it is known before the residuals are drawn
    chi2 = np.random.default_rng([seed, 1]).chisquare(freedom, size=draws)
    return np.sqrt(freedom / chi2)


def possible(measured: Measured, draws: int, seed: int) -> NDArray[np.int64]:
    """The rows that any draw could put on the front: with many, few of all."""
    noise, reach = measured.noise, np.zeros(measured.losses.shape[1])
    if noise is not None:
        farthest = float(np.abs(noise.residuals).max()) * float(
            _stretches(noise, draws, seed).max()
        )
        reach[0] = 2 * farthest
    if len(reach) > 2:
        reach[2] = 2 * _FARTHEST * float(np.nanmax(measured.timing_error, initial=0.0))
    return np.flatnonzero(epsilon_front(measured.losses, reach))


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What the draws say."""

    probability: NDArray[np.float64]
    """[n]"""
    volumes: list[tuple[float, float, float]]
    """Per prefix: the volume as measured, and its interval."""


def draw_fronts(
    measured: Measured,
    reference: Sequence[float],
    prefixes: Sequence[int],
    draws: int = DRAWS,
    seed: int = 0,
) -> Drawn:
    """Probabilities of being on the front, and hypervolumes of the first settings.

    Args:
        measured: In the order in which the settings became known. The last column is a logarithm;
            volumes are taken of the latency itself.
        reference: [m]: per objective the worst that counts.
        prefixes: Volumes are taken of so many of the first settings, each.
        draws: Number of draws, at least 1.
        seed: Of the draws: the same figures give the same result.

    Returns:
        Intervals are basic bootstrap intervals (Davison and Hinkley 1997, section 5.2): the noise
        that is drawn on top of the noise that was measured makes fronts look better than they are,
        and the measured one looks as much too good.
    """
    kept = possible(measured, draws, seed)
    probability = np.zeros(len(measured.losses))
    # of a prefix, its own front counts, which need not be among those of the whole
    early = [possible(measured.only(np.arange(size)), draws, seed) for size in prefixes]
    rows = np.unique(np.concatenate([kept, *early])).astype(np.int64)
    if not len(rows):
        return Drawn(probability=probability, volumes=[(0.0, 0.0, 0.0)] * len(prefixes))
    part = measured.only(rows)
    sizes = [int((rows < size).sum()) for size in prefixes]
    whole = np.array([_volume(part.losses[:size], reference) for size in sizes])
    found, masks = np.empty((draws, len(sizes))), np.zeros(len(rows))
    for index, losses in enumerate(resampled(part, draws, seed)):
        masks += pareto_front(losses)
        found[index] = [_volume(losses[:size], reference) for size in sizes]
    probability[rows] = masks / draws
    edges = np.quantile(found, [(1 + LEVEL) / 2, (1 - LEVEL) / 2], axis=0)
    low, high = np.maximum(2 * whole - edges[0], 0.0), np.maximum(2 * whole - edges[1], 0.0)
    volumes = list(zip(whole.tolist(), low.tolist(), high.tolist(), strict=True))
    return Drawn(probability=probability, volumes=volumes)


def _volume(losses: Losses, reference: Sequence[float]) -> float:
    """Relative to the box from the reference to a model like dense without size or latency."""
    if losses.shape[1] > 2:
        losses = np.column_stack([losses[:, :2], np.exp(losses[:, 2])])
    return hypervolume(losses, reference) / math.prod(reference)
