"""Which trials a task gets: each method's draws, then repeats of what was best among them, and at
the end further runs of what is on the front.

Planning is a pure function of the spec and of what has finished. It is asked again after every
round, so a campaign that was interrupted anywhere goes on with the plan that it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import fmean

from orchestrator.draws import Draws
from orchestrator.earlier import EarlierTrial
from orchestrator.front.dominance import pareto_front
from orchestrator.method_search import TrialPlan, methods_of
from orchestrator.spec import CampaignSpec, content_hash
from orchestrator.spec_tasks import AnyTask


def plan_trials(
    spec: CampaignSpec,
    task: AnyTask,
    data_hash: str,
    finished: Mapping[str, float] | None = None,
    failed: Collection[str] = (),
    higher_is_better: bool = False,
    excess: Mapping[str, float] | None = None,
    draws: Draws | None = None,
    earlier: Sequence[EarlierTrial] = (),
) -> list[TrialPlan]:
    """Every trial of a task that is known to be needed, each once.

    With nothing finished these are the draws of all methods; those of a sampler that learns come
    in batches, each by what the trials before it came to. When all draws of a method at a
    density have ended, the best of them by validation gets its repeats; with `search.tune_at` its
    values go to the other densities too, with repeats of their own. When all of these have ended,
    the settings on the front of quality and size get further runs up to `search.finalists`; who is
    a finalist is not asked again of these runs. More finished trials only add to the plan.

    Args:
        spec: The campaign.
        task: One of its tasks.
        data_hash: Of the prepared data.
        finished: From the key of a finished trial to its quality on validation.
        failed: Keys of trials that ended without a model and are not tried again, those that were
            stopped early among them.
        higher_is_better: Whether a greater quality is the better one.
        excess: From the key of a finished trial to how far its size is above what was asked, if it
            is: among draws the one nearest to its size is the best, whatever its quality.
        draws: What a sampler suggested before; gets what it suggests now.
        earlier: Trials of the campaigns in `search.warm_start`, which are none of this one: the
            best of their settings are the first draws.
    """
    sign, excess = -1.0 if higher_is_better else 1.0, excess or {}
    losses = {k: (excess.get(k, 0.0), sign * quality) for k, quality in (finished or {}).items()}
    plans: dict[str, TrialPlan] = {}
    methods = {method.name: method for method in methods_of(spec, task, data_hash, earlier)}
    for method in methods.values():
        known, complete = method.draws(losses, failed, draws or Draws())
        plans |= {plan.key: plan for plan in known}
        for density in method.tuned if complete else []:
            drawn = [plan for plan in known if plan.method.density == density]
            best = _best(drawn, losses, failed)
            if best is not None:
                plans |= {plan.key: plan for plan in method.following(best)}
    for finalist in (
        _finalists(list(plans.values()), losses, failed) if spec.search.finalists else []
    ):
        for repeat in range(spec.search.finalists or 0):
            method = methods[finalist.method_name]
            for again in method.runs(finalist.searched, repeat, finalist.source):
                plans.setdefault(again.key, again)
    return list(plans.values())


def draws_among(spec: CampaignSpec, plans: Sequence[TrialPlan]) -> list[TrialPlan]:
    """The draws of a plan: what is run to find values, neither a repeat nor a finalist's run, nor
    what has its values from a draw elsewhere, nor part of a ladder."""
    return [
        plan
        for plan in plans
        if plan.repeat == 0 and plan.trunk is None and plan.method.density in spec.search.tuned
    ]


def expected_trials(spec: CampaignSpec, task: AnyTask) -> int:
    """How many trials a task gets over all rounds, if none fails, and of each density one setting
    is on the front."""
    return sum(map(len, expected_rounds(spec, task)))


def expected_rounds(spec: CampaignSpec, task: AnyTask) -> Iterator[list[TrialPlan]]:
    """The trials of each round, under the same suppositions; which draw is the best is not known,
    so the values of a later round stand for others, as random draws do for what a sampler that
    learns will suggest."""
    search = spec.search.model_copy(update={"sampler": "random"})
    spec = spec.model_copy(update={"search": search})
    finished: dict[str, float] = {}
    while True:
        plans = plan_trials(spec, task, "", finished)
        new = [plan for plan in plans if plan.key not in finished]
        if not new:
            return
        yield new
        places: dict[tuple[str, str], int] = {}
        for plan in plans:
            places.setdefault(_setting(plan), len(places))
        # the larger the better; among equals in density the first setting, with all its runs
        finished = {p.key: places[_setting(p)] - 1e6 * p.method.density for p in plans}


def _best(
    drawn: Sequence[TrialPlan],
    losses: Mapping[str, tuple[float, float]],
    failed: Collection[str],
) -> TrialPlan | None:
    """The draw with the least excess and then loss, the first of equals; None while one of them is
    to come."""
    if any(plan.key not in losses and plan.key not in failed for plan in drawn):
        return None
    ended = [plan for plan in drawn if plan.key in losses and not math.isnan(losses[plan.key][1])]
    return min(ended, key=lambda plan: losses[plan.key], default=None)


def _finalists(
    planned: Sequence[TrialPlan],
    losses: Mapping[str, tuple[float, float]],
    failed: Collection[str],
) -> list[TrialPlan]:
    """One plan of each setting on the front of mean quality and size; none while a plan is to come.

    The size is the density that was asked for and what it was exceeded by: latencies are measured
    when all training is over.
    """
    if any(plan.key not in losses and plan.key not in failed for plan in planned):
        return []
    groups: dict[tuple[str, str], list[TrialPlan]] = {}
    for plan in planned:
        if plan.key in losses and not math.isnan(losses[plan.key][1]):
            groups.setdefault(_setting(plan), []).append(plan)
    points = [
        (
            fmean(losses[plan.key][1] for plan in runs),
            runs[0].method.density + fmean(losses[plan.key][0] for plan in runs),
        )
        for runs in groups.values()
    ]
    if not points:
        return []
    on_front = pareto_front(points)
    return [runs[0] for runs, on in zip(groups.values(), on_front, strict=True) if on]


def _setting(plan: TrialPlan) -> tuple[str, str]:
    """What is common to a draw and its repeats."""
    return plan.method_name, content_hash(plan.method.deciding())
