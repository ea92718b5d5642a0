"""Which trials a task gets: each method's draws, then repeats of what was best among them, and at
the end further runs of what is on the front.

Planning is a pure function of the spec and of what has finished. It is asked again after every
round, so a campaign that was interrupted anywhere goes on with the plan that it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, get_args

from orchestrator.front.dominance import pareto_front
from orchestrator.spec import AnyTask, CampaignSpec, MethodSpec, content_hash
from orchestrator.spec_search import ComparedMethod, Distribution

CODE_CONTRACT = 1
"""Raised when a change of code makes finished models incomparable; part of every key."""
TRIAL_CONTRACT = 3
"""The same for trials alone: dense references keep their keys."""
KIND_CONTRACT = {"flop-agp": 2}
"""The same for trials of one kind of method."""
LADDER_CONTRACT = 1
"""The same for the models of ladders."""
MOST_ROUNDS = 20
"""Rounds of draws per wanted trial after which a short list counts as exhausted."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """A trial before it runs."""

    key: str
    name: str
    """For people: the method if there are several, the searched values, the seed of a repeat."""
    method_name: str
    """Of `search.methods`; the method's kind in a campaign that compares none."""
    method: MethodSpec
    searched: dict[str, Any]
    seed: int
    repeat: int
    """0 for a draw, and for the first run at a density that was not tuned."""
    trunk: str | None = None
    """Key of the trunk that it branches off, if it is part of a ladder."""


def plan_trials(
    spec: CampaignSpec,
    task: AnyTask,
    data_hash: str,
    finished: Mapping[str, float] | None = None,
    failed: Collection[str] = (),
    higher_is_better: bool = False,
    excess: Mapping[str, float] | None = None,
) -> list[TrialPlan]:
    """Every trial of a task that is known to be needed, each once.

    With nothing finished these are the draws of all methods. When all draws of a method at a
    density have ended, the best of them by validation gets its repeats; with `search.tune_at` its
    values go to the other densities too, with repeats of their own. When all of these have ended,
    the settings on the front of quality and size get further runs up to `search.finalists`; who is
    a finalist is not asked again of these runs. More finished trials only add to the plan.

    Args:
        spec: The campaign.
        task: One of its tasks.
        data_hash: Of the prepared data.
        finished: From the key of a finished trial to its quality on validation.
        failed: Keys of trials that ended without a model and are not tried again.
        higher_is_better: Whether a greater quality is the better one.
        excess: From the key of a finished trial to how far its size is above what was asked, if it
            is: among draws the one nearest to its size is the best, whatever its quality.
    """
    sign, excess = -1.0 if higher_is_better else 1.0, excess or {}
    losses = {k: (excess.get(k, 0.0), sign * quality) for k, quality in (finished or {}).items()}
    plans: dict[str, TrialPlan] = {}
    methods = {method.name: method for method in _methods(spec, task, data_hash)}
    for method in methods.values():
        draws = method.draws()
        plans |= {plan.key: plan for plan in draws}
        for density in method.tuned:
            drawn = [plan for plan in draws if plan.method.density == density]
            best = _best(drawn, losses, failed)
            if best is not None:
                plans |= {plan.key: plan for plan in method.following(best)}
    for finalist in (
        _finalists(list(plans.values()), losses, failed) if spec.search.finalists else []
    ):
        for repeat in range(spec.search.finalists or 0):
            for again in methods[finalist.method_name].runs(finalist.searched, repeat):
                plans.setdefault(again.key, again)
    return list(plans.values())


def expected_trials(spec: CampaignSpec, task: AnyTask) -> int:
    """How many trials a task gets over all rounds, if none fails, and of each density one setting
    is on the front."""
    return sum(map(len, expected_rounds(spec, task)))


def expected_rounds(spec: CampaignSpec, task: AnyTask) -> Iterator[list[TrialPlan]]:
    """The trials of each round, under the same suppositions; which draw is the best is not known,
    so the values of a later round stand for others."""
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


# --------------------------------------------------------------------------- keys


def trial_key(
    spec: CampaignSpec,
    task: AnyTask,
    method: MethodSpec,
    data_hash: str,
    seed: int | None = None,
    method_name: str = "",
) -> str:
    """Hash of everything that decides a trial's result.

    Args:
        spec: The campaign.
        task: One of its tasks.
        method: With the trial's values.
        data_hash: Of the prepared data.
        seed: Of the trial; by default the campaign's.
        method_name: Of a compared method: two methods with equal values are two trials.
    """
    described = [method.deciding(), spec.seed if seed is None else seed, method_name]
    contracts = [TRIAL_CONTRACT]
    if method.kind in KIND_CONTRACT:
        contracts.append(KIND_CONTRACT[method.kind])
    return content_hash([dense_key(spec, task, data_hash), *described, "trial", *contracts])


def trunk_key(
    spec: CampaignSpec,
    task: AnyTask,
    method: MethodSpec,
    data_hash: str,
    seed: int,
    method_name: str,
) -> str:
    """Hash of everything that decides what the branches of a ladder have in common."""
    assert spec.search.ladder is not None
    # not where the branches run, which changes nothing
    steps = spec.search.ladder.model_dump(exclude={"run"})
    # at whichever density: it is the same trunk
    one = method.model_copy(update={"density": max(spec.search.density)})
    described = [spec.search.descending, steps, LADDER_CONTRACT]
    return content_hash(
        [trial_key(spec, task, one, data_hash, seed, method_name), "trunk", *described]
    )


def rung_key(trunk: str, density: float) -> str:
    """Of a ladder's model."""
    return content_hash([trunk, density])


def dense_key(spec: CampaignSpec, task: AnyTask, data_hash: str) -> str:
    """Hash of everything that decides a dense reference; its seed is the campaign's."""
    described = task.model_dump(mode="json", exclude={"method", "resources", "data"})
    # which matrices count as prunable is part of what is recorded of the dense model
    method = spec.method_of(task)
    resources = spec.resources_of(task)
    # with a range of workers the result is not that of any number in it
    workers: int | list[int] = resources.workers
    if resources.min_workers is not None:
        workers = [resources.min_workers, resources.workers]
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
            # only if used: dense references without it keep their keys
            *(["embeddings"] if method.embeddings else []),
        ]
    )


# --------------------------------------------------------------------------- one method


@dataclass(frozen=True, kw_only=True)
class _Method:
    """One method on one task: what its trials have in common, and what they draw."""

    spec: CampaignSpec
    task: AnyTask
    data_hash: str
    name: str
    compared: bool
    """Whether the name is of `search.methods`, and with it part of keys, names and the stream."""
    given: ComparedMethod
    """What `search.methods` says of it."""
    fields: dict[str, Distribution | list[Any]]

    @property
    def num_draws(self) -> int:
        return self.given.trials_per_density or self.spec.search.trials_per_density

    @property
    def tuned(self) -> list[float]:
        """The densities that have draws of their own."""
        search = self.spec.search
        return search.density if search.tune_at is None else [search.tune_at]

    @property
    def drawn_at(self) -> list[float]:
        """One density stands for all of a ladder."""
        return self.tuned if self.spec.search.ladder is None else self.spec.search.descending[:1]

    def draws(self) -> list[TrialPlan]:
        """Drawn by Ray Tune's own variant generator.

        They depend on the seed, the names of task and method, and the search alone, so the same
        spec gives the same keys on every machine, and a resumed campaign recognizes what it has.
        """
        import numpy as np
        from ray import tune
        from ray.tune.search.variant_generator import generate_variants

        space: dict[str, Any] = {"density": tune.grid_search(list(self.drawn_at))}
        space |= {field: _domain(choice) for field, choice in self.fields.items()}
        stream = [self.spec.seed, self.task.name, *([self.name] if self.compared else [])]
        state = np.random.RandomState(int(content_hash(stream), 16) % 2**32)
        drawn = {k for k, choice in self.fields.items() if isinstance(choice, Distribution)}
        plans: dict[str, TrialPlan] = {}
        counts = dict.fromkeys(self.drawn_at, 0)
        # two draws from a short list can be the same trial: it is drawn again, for a while
        for _ in range(MOST_ROUNDS * self.num_draws):
            if all(count >= self.num_draws for count in counts.values()):
                break
            for _, searched in generate_variants(space, random_state=state):
                plan = self.plan({k: _plain(k, v, k in drawn) for k, v in searched.items()})
                density = plan.method.density
                if plan.key not in plans and counts[density] < self.num_draws:
                    plans[plan.key] = plan
                    counts[density] += 1
        return [run for plan in plans.values() for run in self.runs(plan.searched)]

    def runs(self, searched: dict[str, Any], repeat: int = 0) -> list[TrialPlan]:
        """The trial with these values, with all others of its ladder if it has one."""
        if self.spec.search.ladder is None:
            return [self.plan(searched, repeat)]
        densities = self.spec.search.descending
        return [self.plan(searched | {"density": density}, repeat) for density in densities]

    def following(self, best: TrialPlan) -> Iterator[TrialPlan]:
        """What the best draw at a density leads to: its values elsewhere, and all repeats."""
        search = self.spec.search
        densities = [best.method.density] if search.tune_at is None else search.density
        for density in densities:
            for repeat in range(search.repeats_of(self.given, density)):
                if (density, repeat) != (best.method.density, 0):
                    yield from self.runs(best.searched | {"density": density}, repeat)

    def plan(self, searched: dict[str, Any], repeat: int = 0) -> TrialPlan:
        method = self.spec.method_of(self.task, self.given.changes, **searched)
        seed, label = self.spec.seed + repeat, self.name if self.compared else ""
        words = [label, _name(searched), f"seed={seed}" if repeat else ""]
        decides = self.spec, self.task, method, self.data_hash, seed, label
        trunk = None if self.spec.search.ladder is None else trunk_key(*decides)
        return TrialPlan(
            key=rung_key(trunk, method.density) if trunk else trial_key(*decides),
            name=" ".join(word for word in words if word),
            method_name=self.name,
            method=method,
            searched=searched,
            seed=seed,
            repeat=repeat,
            trunk=trunk,
        )


def _methods(spec: CampaignSpec, task: AnyTask, data_hash: str) -> Iterator[_Method]:
    search = spec.search
    alone = {spec.method_of(task).kind: ComparedMethod()}
    for name, method in (search.methods or alone).items():
        kind = spec.method_of(task, method.changes).kind
        yield _Method(
            spec=spec,
            task=task,
            data_hash=data_hash,
            name=name,
            compared=bool(search.methods),
            given=method,
            fields=search.shared_fields(method, kind) | method.searched,
        )


# --------------------------------------------------------------------------- values


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
    annotation = MethodSpec.model_fields[field].annotation
    if int in (types := (annotation, *get_args(annotation))) and float not in types:
        return round(value)
    return float(f"{value:.4g}") if drawn else float(value)


def _name(searched: dict[str, Any]) -> str:
    """The values, density first."""
    ordered = {"density": searched["density"]} | searched
    return " ".join(
        f"{k}={v:.12g}" if isinstance(v, float) else f"{k}={v}" for k, v in ordered.items()
    )
