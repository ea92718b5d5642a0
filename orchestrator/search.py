"""Which trials a task gets: every density, and draws of whatever else the spec searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.spec import (
    CampaignSpec,
    Classification,
    LanguageModelling,
    MethodSpec,
    content_hash,
)
from orchestrator.spec_method import Distribution

CODE_CONTRACT = 1
"""Raised when a change of code makes finished trials incomparable; part of every key."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """A trial before it runs."""

    key: str
    name: str
    """For people: the searched values."""
    method: MethodSpec
    searched: dict[str, Any]


def plan_trials(
    spec: CampaignSpec, task: LanguageModelling | Classification, data_hash: str
) -> list[TrialPlan]:
    """Trials of a task, drawn by Ray Tune's own variant generator.

    The draw depends on the seed, the task's name and the search alone, so the same spec gives
    the same keys on every machine, and a resumed campaign recognizes what it has.
    """
    import numpy as np
    from ray import tune
    from ray.tune.search.variant_generator import generate_variants

    search = spec.search
    space: dict[str, Any] = {"density": tune.grid_search(list(search.density))}
    space |= {field: _domain(choice) for field, choice in search.fields.items()}
    state = np.random.RandomState(int(content_hash([spec.seed, task.name]), 16) % 2**32)
    plans: dict[str, TrialPlan] = {}
    for _ in range(search.trials_per_density):
        for _, searched in generate_variants(space, random_state=state):
            drawn = {k for k, choice in search.fields.items() if isinstance(choice, Distribution)}
            searched = {k: _plain(k, v, k in drawn) for k, v in searched.items()}
            method = spec.method_of(task, **searched)
            key = trial_key(spec, task, method, data_hash)
            # two draws from a short list can be the same trial: it runs once
            plans.setdefault(
                key, TrialPlan(key=key, name=_name(searched), method=method, searched=searched)
            )
    return list(plans.values())


def trial_key(
    spec: CampaignSpec,
    task: LanguageModelling | Classification,
    method: MethodSpec,
    data_hash: str,
) -> str:
    """Hash of everything that decides a trial's result."""
    return content_hash([dense_key(spec, task, data_hash), method.model_dump(mode="json"), "trial"])


def dense_key(spec: CampaignSpec, task: LanguageModelling | Classification, data_hash: str) -> str:
    """Hash of everything that decides a dense reference."""
    described = task.model_dump(mode="json", exclude={"method", "resources", "data"})
    # which matrices count as prunable is part of what is recorded of the dense model
    method = spec.method_of(task)
    workers = spec.resources_of(task).workers
    return content_hash(
        [
            CODE_CONTRACT,
            described,
            data_hash,
            spec.seed,
            workers,
            method.include,
            method.exclude,
            method.max_grad_norm,
        ]
    )


def _domain(choice: Distribution | list[Any]) -> Any:
    from ray import tune

    if isinstance(choice, list):
        return tune.choice(choice)
    if choice.log_uniform is not None:
        return tune.loguniform(*choice.log_uniform)
    assert choice.uniform is not None
    return tune.uniform(*choice.uniform)


def _plain(field: str, value: Any, drawn: bool) -> Any:
    """Drawn floats with four digits: keys and names stay readable, and exact in JSON.

    What the spec lists stays as it is written.
    """
    if not isinstance(value, float):
        return value
    if MethodSpec.model_fields[field].annotation is int:
        return round(value)
    return float(f"{value:.4g}") if drawn else float(value)


def _name(searched: dict[str, Any]) -> str:
    rest = [
        f"{k}={v:.12g}" if isinstance(v, float) else f"{k}={v}"
        for k, v in searched.items()
        if k != "density"
    ]
    return " ".join([f"density={searched['density']:.12g}", *rest])
