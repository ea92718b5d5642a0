"""What one method's trials on one task draw, and what follows from the best of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

from orchestrator.draws import Draws
from orchestrator.earlier import EarlierTrial, task_digest
from orchestrator.sampler import Tried, suggest
from orchestrator.spec import CampaignSpec, MethodSpec, content_hash
from orchestrator.spec_search import ComparedMethod
from orchestrator.spec_tasks import AnyTask
from orchestrator.spec_values import Distribution
from orchestrator.trial_keys import rung_key, trial_key, trunk_key
from orchestrator.warm_start import Warmth, warmth_of

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
    source: EarlierTrial | None = None
    """The trial of an earlier campaign that it has its values from."""


Loss = tuple[float, float]
"""How far a trial's size is above what was asked, and its quality, the smaller the better."""


@dataclass(frozen=True, kw_only=True)
class MethodSearch:
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
    warmth: Warmth = field(default_factory=Warmth)
    """What earlier campaigns know of it."""

    @property
    def num_draws(self) -> int:
        return self.given.trials_per_density or self.spec.search.trials_per_density

    @property
    def tuned(self) -> list[float]:
        """The densities that have draws of their own."""
        return self.spec.search.tuned

    @property
    def drawn_at(self) -> list[float]:
        """One density stands for all of a ladder."""
        return self.tuned if self.spec.search.ladder is None else self.spec.search.descending[:1]

    def draws(
        self, losses: Mapping[str, Loss], failed: Collection[str], kept: Draws
    ) -> tuple[list[TrialPlan], bool]:
        """Every draw that is known by now, and whether no more will come.

        Args:
            losses: Of the trials that have a model.
            failed: Keys of those that have none.
            kept: What was suggested before.
        """
        drawn = self._drawn()
        if self.spec.search.sampler == "random" or not self.fields:
            return drawn, True
        return self._suggested(drawn, losses, failed, kept)

    def _suggested(
        self,
        drawn: Sequence[TrialPlan],
        losses: Mapping[str, Loss],
        failed: Collection[str],
        kept: Draws,
    ) -> tuple[list[TrialPlan], bool]:
        """The first ones from earlier campaigns and at random, over all densities in turn; then
        batches, each when all before have ended, by what they and the earlier trials came to."""
        search, space = self.spec.search, {"density": list(self.tuned), **self.fields}
        wanted = self.num_draws * len(self.tuned)
        drawn_fields = {k for k, choice in self.fields.items() if isinstance(choice, Distribution)}
        known = self.warmth.observed(self.tuned)
        # whoever knows that much already has no use for chance
        first = max(sum(plan.source is not None for plan in drawn), search.startup - len(known))
        plans = {plan.key: plan for plan in drawn[:first]}
        while len(plans) < wanted:
            if any(key not in losses and key not in failed for key in plans):
                return list(plans.values()), False
            count = min(search.batch, wanted - len(plans))
            # of who was tried, not of what they came to: a trial that is trained again on another
            # machine must not leave all that followed without a plan
            facts = [self._stream, space_facts(space), list(plans)]
            if known:
                facts.append([[each.values, each.objectives] for each in known])
            seed = int(content_hash(facts), 16)
            past = [*known, *(_tried(plan, losses) for plan in plans.values())]
            asked = partial(suggest, space, past, count, seed % 2**32, search.startup)
            batch = kept.batch(f"{seed:016x}", asked)
            before = len(plans)
            for values in batch:
                plan = self.plan({k: _plain(k, v, k in drawn_fields) for k, v in values.items()})
                plans.setdefault(plan.key, plan)
            if len(plans) == before:  # a short list is exhausted
                break
        return list(plans.values()), True

    @property
    def _stream(self) -> list[Any]:
        """Of random numbers: its own for each task and method."""
        return [self.spec.seed, self.task.name, *([self.name] if self.compared else [])]

    def _drawn(self) -> list[TrialPlan]:
        """First what was best in earlier campaigns; the others by Ray Tune's own variant generator.

        These depend on the seed, the names of task and method, and the search alone, so the same
        spec gives the same keys on every machine, and a resumed campaign recognizes what it has.
        """
        import numpy as np
        from ray import tune
        from ray.tune.search.variant_generator import generate_variants

        space: dict[str, Any] = {"density": tune.grid_search(list(self.drawn_at))}
        space |= {field: _domain(choice) for field, choice in self.fields.items()}
        state = np.random.RandomState(int(content_hash(self._stream), 16) % 2**32)
        drawn = {k for k, choice in self.fields.items() if isinstance(choice, Distribution)}
        plans: dict[str, TrialPlan] = {}
        counts = dict.fromkeys(self.drawn_at, 0)
        for plan in self._warm():
            # two that round to one are one
            counts[plan.method.density] += plan.key not in plans
            plans.setdefault(plan.key, plan)
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
        return [run for plan in plans.values() for run in self.runs(plan.searched, 0, plan.source)]

    def _warm(self) -> Iterator[TrialPlan]:
        """The best earlier settings at each density, over all densities in turn."""
        search = self.spec.search
        if search.warm_start is None or not self.warmth.fitting:
            return
        count = min(search.warm_start.top, self.num_draws)
        drawn = {k for k, choice in self.fields.items() if isinstance(choice, Distribution)}
        # of a ladder those at its end: what all of its descent leads to
        looked_at = {
            d: d if search.ladder is None else search.descending[-1] for d in self.drawn_at
        }
        best = {d: self.warmth.best(place, count) for d, place in looked_at.items()}
        for rank in range(count):
            for density, found in best.items():
                if rank < len(found):
                    values = {k: _plain(k, v, k in drawn) for k, v in found[rank].values.items()}
                    yield self.plan({"density": density, **values}, source=found[rank].trial)

    def runs(
        self, searched: dict[str, Any], repeat: int = 0, source: EarlierTrial | None = None
    ) -> list[TrialPlan]:
        """The trial with these values, with all others of its ladder if it has one."""
        if self.spec.search.ladder is None:
            return [self.plan(searched, repeat, source)]
        densities = self.spec.search.descending
        return [self.plan(searched | {"density": density}, repeat, source) for density in densities]

    def following(self, best: TrialPlan) -> Iterator[TrialPlan]:
        """What the best draw at a density leads to: its values elsewhere, and all repeats."""
        search = self.spec.search
        densities = [best.method.density] if search.tune_at is None else search.density
        for density in densities:
            for repeat in range(search.repeats_of(self.given, density)):
                if (density, repeat) != (best.method.density, 0):
                    yield from self.runs(best.searched | {"density": density}, repeat, best.source)

    def plan(
        self, searched: dict[str, Any], repeat: int = 0, source: EarlierTrial | None = None
    ) -> TrialPlan:
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
            source=source,
        )


def methods_of(
    spec: CampaignSpec, task: AnyTask, data_hash: str, earlier: Sequence[EarlierTrial] = ()
) -> Iterator[MethodSearch]:
    """The methods that a task compares; its own if the campaign compares none."""
    search = spec.search
    alone = {spec.method_of(task).kind: ComparedMethod()}
    for name, method in (search.methods or alone).items():
        fixed = spec.method_of(task, method.changes)
        fields = search.shared_fields(method, fixed.kind) | method.searched
        yield MethodSearch(
            spec=spec,
            task=task,
            data_hash=data_hash,
            name=name,
            compared=bool(search.methods),
            given=method,
            fields=fields,
            warmth=warmth_of(fixed, name, fields, task_digest(task), earlier)
            if earlier
            else Warmth(),
        )


def _domain(choice: Distribution | list[Any]) -> Any:
    from ray import tune

    if isinstance(choice, list):
        return tune.choice(choice)
    if choice.log_uniform is not None:
        return tune.loguniform(*choice.log_uniform)
    assert choice.uniform is not None
    return tune.uniform(*choice.uniform)


def _tried(plan: TrialPlan, losses: Mapping[str, Loss]) -> Tried:
    """Its objectives: quality, and the size that it really has."""
    if plan.key not in losses:
        return Tried(values=plan.searched, objectives=None)
    excess, quality = losses[plan.key]
    return Tried(values=plan.searched, objectives=(quality, plan.method.density + excess))


def space_facts(space: Mapping[str, Distribution | list[Any]]) -> dict[str, Any]:
    """As JSON has it."""
    return {k: v if isinstance(v, list) else v.model_dump() for k, v in space.items()}


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
