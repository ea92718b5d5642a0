"""A multi-objective Bayesian search: a Gaussian process per objective, asked in batches.

Each batch is a function of the search space, of a seed, and of what the trials of the batches
before have come to; `draws` keeps what was suggested, so that a campaign that goes on, here or on
another machine, has the trials that it had.

The process, its expected improvement of the hypervolume and the optimizer are Optuna's
`GPSampler`. `python -m benchmarks.samplers` compares it with random draws and with Optuna's
tree-structured Parzen estimator, which at two dozen trials was hardly better than chance
(docs/results/samplers.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.spec_values import Distribution

Space = Mapping[str, Distribution | list[Any]]
"""What is searched: a range, or values to choose from. Of `density` the values are ordered."""

ORDERED = "density"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A trial that has ended."""

    values: dict[str, Any]
    """One of each field of the space; others are left out."""
    objectives: tuple[float, ...] | None
    """The smaller the better; None of a trial that failed."""


def suggest(
    space: Space, tried: Sequence[Tried], count: int, seed: int, startup: int
) -> list[dict[str, Any]]:
    """The next trials.

    Args:
        space: The fields that are searched.
        tried: Every trial that has ended, in the order of the plan. One whose values do not lie in
            the space teaches nothing and is left out.
        count: Trials to suggest, at least 1.
        seed: Of this batch.
        startup: Finished trials below which values are drawn at random.

    Returns:
        `count` times one value of each field; two may be equal where values are few.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(name, choice) for name, choice in space.items()}
    sampler = optuna.samplers.GPSampler(
        # the same setting with another seed has another loss
        seed=seed,
        n_startup_trials=startup,
        deterministic_objective=False,
    )
    past = [trial for each in tried if (trial := _trial(space, distributions, each)) is not None]
    number = next((len(each.objectives) for each in tried if each.objectives), 1)
    study = optuna.create_study(directions=["minimize"] * number, sampler=sampler)
    study.add_trials(past)
    with _one_thread():
        asked = [study.ask(distributions) for _ in range(count)]
    return [{name: _value(space, name, trial.params[name]) for name in space} for trial in asked]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in another order would end in other values."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _distribution(name: str, choice: Distribution | list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(choice, list):
        if name == ORDERED:
            return IntDistribution(0, len(choice) - 1)
        return CategoricalDistribution(choice)
    low, high = choice.log_uniform or choice.uniform or (0.0, 1.0)
    return FloatDistribution(low, high, log=choice.log_uniform is not None)


def _value(space: Space, name: str, suggested: Any) -> Any:
    choice = space[name]
    return sorted(choice)[suggested] if isinstance(choice, list) and name == ORDERED else suggested


def _trial(space: Space, distributions: Mapping[str, Any], tried: Tried) -> Any:
    """As Optuna keeps it; None if it does not lie in the space."""
    from optuna.trial import TrialState, create_trial

    params: dict[str, Any] = {}
    for name, choice in space.items():
        value = place(name, choice, tried.values.get(name))
        if value is None:
            return None
        params[name] = value
    objectives = tried.objectives
    if objectives is None or not all(math.isfinite(value) for value in objectives):
        return create_trial(state=TrialState.FAIL, params=params, distributions=dict(distributions))
    return create_trial(values=list(objectives), params=params, distributions=dict(distributions))


def place(name: str, choice: Distribution | list[Any], value: Any) -> Any:
    """What Optuna has of a value; None if it is none of the choice.

    Args:
        name: Of the field: densities are places in order.
        choice: What is searched.
        value: Of a trial.
    """
    if isinstance(choice, list):
        if value not in choice:
            return None
        return sorted(choice).index(value) if name == ORDERED else choice[choice.index(value)]
    low, high = choice.log_uniform or choice.uniform or (0.0, 1.0)
    # plans keep four digits, which may lie outside by rounding alone
    slack = 1e-3 * abs(high)
    if not isinstance(value, int | float) or not low - slack <= value <= high + slack:
        return None
    return min(max(float(value), low), high)
