"""How samplers find a front that is known: hypervolume after a number of trials, over seeds.

    python -m benchmarks.samplers

The loss has a valley in the learning rate that moves with the density, two starts of which one is
worse, and noise of a hundredth. Random draws, Optuna's tree-structured Parzen estimator, and the
Gaussian processes that `orchestrator.sampler` uses ask in the same batches.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import numpy as np
import optuna

from orchestrator.front.hypervolume import hypervolume

DENSITIES = [0.1, 0.25, 0.5]
RATES = (1e-4, 1e-1)
STARTS = ["svd", "random"]
NOISE = 0.01
REFERENCE = (3.0, 1.0)

SAMPLERS: dict[str, Callable[[int, int], Any]] = {
    "random": lambda seed, startup: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed, startup: optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=startup, constant_liar=True
    ),
    "gp": lambda seed, startup: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=startup, deterministic_objective=False
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--startup", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    best = hypervolume(np.array([(2 + 0.3 * (1 - d) ** 2, d) for d in DENSITIES]), REFERENCE)
    print(f"of the true front: {best:.4f}")
    for name, make in SAMPLERS.items():
        began = time.perf_counter()
        found = [
            search(make, seed, options.trials, options.batch, options.startup)
            for seed in range(options.seeds)
        ]
        seconds = (time.perf_counter() - began) / options.seeds
        low, _, high = quantiles(found, n=4, method="inclusive")
        print(
            f"{name:8} median {median(found):.4f}, quartiles {low:.4f} to {high:.4f}, "
            f"worst {min(found):.4f}, {seconds:.1f} s a search",
            flush=True,
        )


def search(
    make: Callable[[int, int], Any], seed: int, trials: int, batch: int, startup: int
) -> float:
    """The hypervolume, without noise, of what one search has tried."""
    noise = np.random.RandomState(seed)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=make(seed, startup))
    points = []
    while len(points) < trials:
        for trial in [study.ask() for _ in range(batch)]:
            rate = trial.suggest_float("learning_rate", *RATES, log=True)
            density = DENSITIES[trial.suggest_int("density", 0, len(DENSITIES) - 1)]
            start = trial.suggest_categorical("start", STARTS)
            loss = 2 + 0.3 * (1 - density) ** 2 + (math.log10(rate) + 2.5 - density) ** 2
            loss += 0.5 if start == "random" else 0.0
            points.append((loss, density))
            study.tell(trial, [loss + NOISE * noise.randn(), density])
    return hypervolume(np.array(points), REFERENCE)


if __name__ == "__main__":
    main()
