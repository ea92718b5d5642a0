"""How samplers find a front that is known: hypervolume after a number of trials, over seeds.

    python -m benchmarks.samplers

The loss has a valley in the learning rate that moves with the density, two starts of which one is
worse, and noise of a hundredth. Random draws, Optuna's tree-structured Parzen estimator, and the
Gaussian processes that `orchestrator.sampler` uses ask in the same batches. `--warm` compares
searches as campaigns plan them, from nothing and with `search.warm_start` from another seed's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

import numpy as np
import optuna

from orchestrator.draws import Draws
from orchestrator.earlier import EarlierTrial, task_digest
from orchestrator.front.hypervolume import hypervolume
from orchestrator.method_search import TrialPlan
from orchestrator.search import plan_trials
from orchestrator.spec import CampaignSpec

DENSITIES = [0.1, 0.25, 0.5]
RATES = (1e-4, 1e-1)
STARTS = ["covariance", "svd"]
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
    parser.add_argument(
        "--warm",
        nargs="+",
        choices=("random", "gp"),
        help="compare warm starts of these, from campaigns of these",
    )
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    best = hypervolume(np.array([(2 + 0.3 * (1 - d) ** 2, d) for d in DENSITIES]), REFERENCE)
    print(f"of the true front: {best:.4f}")
    if options.warm:
        options.warm.sort(reverse=True)
        compare_warm(options.warm, options.trials, options.batch, options.startup, options.seeds)
        return
    for name, make in SAMPLERS.items():
        began = time.perf_counter()
        found = [
            search(make, seed, options.trials, options.batch, options.startup)
            for seed in range(options.seeds)
        ]
        seconds = (time.perf_counter() - began) / options.seeds
        print(f"{name:8} {in_words(found)}, {seconds:.1f} s a search", flush=True)


def in_words(found: list[float]) -> str:
    """Hypervolumes over seeds."""
    low, _, high = quantiles(found, n=4, method="inclusive")
    return f"median {median(found):.4f}, quartiles {low:.4f} to {high:.4f}, worst {min(found):.4f}"


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
            points.append((loss := true_loss(rate, density, start), density))
            study.tell(trial, [loss + NOISE * noise.randn(), density])
    return hypervolume(np.array(points), REFERENCE)


def true_loss(rate: float, density: float, start: str, valley: float = 0.0) -> float:
    """Without noise; of another model the valley lies so many decades higher."""
    loss = 2 + 0.3 * (1 - density) ** 2 + (math.log10(rate) + 2.5 - density - valley) ** 2
    return loss + (0.5 if start == STARTS[1] else 0.0)


# --------------------------------------------------------------------------- warm starts

OTHER_SEED = 1000
"""Added to the seeds of the campaigns that are started from: no noise and no draw is the same."""
OTHER_VALLEY = 0.5
"""Decades of learning rate by which another model's best settings miss: each density's by 0.25 of
loss, half of what the worse start costs."""


def compare_warm(
    samplers: Sequence[str], trials: int, batch: int, startup: int, seeds: int
) -> None:
    """Campaigns of all and of half the trials, by what they begin with."""
    earlier: dict[str, list[list[EarlierTrial]]] = {"nothing": [[] for _ in range(seeds)]}
    sources = {name: (name, 0.0) for name in samplers}
    sources[f"{samplers[-1]}, another model"] = (samplers[-1], OTHER_VALLEY)
    for name, (sampler, valley) in sources.items():
        earlier[name] = [
            campaign(OTHER_SEED + seed, trials, sampler, batch, startup, (), valley)[1]
            for seed in range(seeds)
        ]
    for number in (trials // 2, trials):
        for sampler in samplers:
            for name, known in earlier.items():
                found = [
                    campaign(seed, number, sampler, batch, startup, known[seed])[0]
                    for seed in range(seeds)
                ]
                print(f"{number} trials, {sampler:6} from {name:22} {in_words(found)}", flush=True)


def campaign(
    seed: int,
    trials: int,
    sampler: str,
    batch: int,
    startup: int,
    earlier: Sequence[EarlierTrial],
    valley: float = 0.0,
) -> tuple[float, list[EarlierTrial]]:
    """A search as `orchestrator.search` plans it, with the loss above in place of trainings.

    Returns:
        The hypervolume, without noise, of what it has tried; and its trials, for others.
    """
    spec = spec_of(seed, trials, sampler, batch, startup, bool(earlier))
    task, noise, draws = spec.tasks[0], np.random.RandomState(seed), Draws()
    digest = task_digest(task) if valley == 0 else ""
    losses: dict[str, float] = {}
    while True:
        plans = plan_trials(spec, task, "", losses, draws=draws, earlier=earlier)
        new = [plan for plan in plans if plan.key not in losses]
        if not new:
            break
        for plan in new:
            losses[plan.key] = _loss_of(plan, valley) + NOISE * noise.randn()
    points = np.array([(_loss_of(plan, valley), plan.method.density) for plan in plans])
    ended = [
        EarlierTrial(
            campaign=spec.name,
            run_id=plan.key,
            method_name=plan.method_name,
            config=plan.method.model_dump(mode="json"),
            task_digest=digest,
            loss=losses[plan.key],
            excess=0.0,
        )
        for plan in plans
    ]
    return hypervolume(points, REFERENCE), ended


def _loss_of(plan: TrialPlan, valley: float) -> float:
    method = plan.method
    return true_loss(method.finetune_learning_rate, method.density, method.start, valley)


def spec_of(
    seed: int, trials: int, sampler: str, batch: int, startup: int, is_warm: bool
) -> CampaignSpec:
    """Of the same space."""
    task = {
        "name": "known",
        "kind": "language-modelling",
        "data": {"source": "python-docs"},
        "model": {"type": "gpt2"},
        "dense": {"steps": 10, "learning_rate": 1e-3},
    }
    search = {
        "density": DENSITIES,
        "trials_per_density": trials // len(DENSITIES),
        "sampler": sampler,
        "startup": startup,
        "batch": batch,
        "finetune_learning_rate": {"log_uniform": RATES},
        "start": STARTS,
    }
    if is_warm:
        search["warm_start"] = ["earlier"]
    return CampaignSpec.model_validate(
        {"name": "known", "seed": seed, "tasks": [task], "search": search}
    )


if __name__ == "__main__":
    main()
