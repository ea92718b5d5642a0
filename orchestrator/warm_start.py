"""What of earlier trials serves one method's search today: pure functions of what was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from orchestrator.earlier import EarlierTrial
from orchestrator.sampler import Space, Tried, place
from orchestrator.spec_method import MethodSpec
from orchestrator.spec_values import Distribution


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """An earlier trial with values of today's searched fields."""

    trial: EarlierTrial
    density: float
    values: dict[str, Any]
    """One of each searched field, as today's spec has it."""
    is_comparable: bool
    """Whether all that is not searched was what it is today, but for seeds: then what it came to
    says what would come of it today. Of others no more is taken than which of them was best."""


@dataclass(frozen=True, kw_only=True)
class Warmth:
    """What one method has of earlier campaigns."""

    fitting: list[Fitting] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Trials of this method that do not fit, by the reason."""

    def best(self, density: float, count: int) -> list[Fitting]:
        """The best settings at a density, each as one of its runs.

        Nearest densities come first, then what is comparable, then the mean over a setting's runs:
        first of how far its size was missed, then of its loss.
        """
        groups: dict[str, list[Fitting]] = {}
        for fitting in self.fitting:
            same = repr((fitting.density, fitting.is_comparable, sorted(fitting.values.items())))
            groups.setdefault(same, []).append(fitting)

        def order(runs: Sequence[Fitting]) -> tuple[float, bool, float, float]:
            distance = abs(runs[0].density - density)
            excess = fmean(run.trial.excess for run in runs)
            loss = fmean(run.trial.loss for run in runs)
            return distance, not runs[0].is_comparable, excess, loss

        found: dict[str, Fitting] = {}
        for runs in sorted(groups.values(), key=order):
            found.setdefault(repr(sorted(runs[0].values.items())), runs[0])
        return list(found.values())[:count]

    def observed(self, densities: Sequence[float]) -> list[Tried]:
        """What a model of quality and size may learn from: comparable trials at these densities."""
        return [
            Tried(
                values={"density": each.density, **each.values},
                objectives=(each.trial.loss, each.density + each.trial.excess),
            )
            for each in self.fitting
            if each.is_comparable and each.density in densities
        ]

    @property
    def total(self) -> int:
        """Earlier trials of this method."""
        return len(self.fitting) + sum(self.left_out.values())

    @property
    def text(self) -> str:
        """For people: how many fit, and why the others do not."""
        text = f"{len(self.fitting)} of {self.total} earlier trials have settings that it searches"
        comparable = sum(each.is_comparable for each in self.fitting)
        if comparable < len(self.fitting):
            text += f", {comparable} of them with the same model, training and fixed settings"
        reasons = [f"{number} {why}" for why, number in sorted(self.left_out.items())]
        return text + (f"; left out: {', '.join(reasons)}" if reasons else "")


def warmth_of(
    method: MethodSpec,
    name: str,
    space: Space,
    task_digest: str,
    earlier: Sequence[EarlierTrial],
) -> Warmth:
    """The earlier trials of a method that lie in what it searches.

    Args:
        method: With what is not searched, at any density.
        name: Of the method.
        space: Its searched fields, without the density; nothing is taken if it has none.
        task_digest: Of today's task.
        earlier: Trials of any method.
    """
    found = Warmth()
    own = (
        each
        for each in earlier
        if (each.method_name, each.config.get("kind")) == (name, method.kind)
    )
    for trial in own if space else ():
        try:
            ran = MethodSpec.model_validate(trial.config)
        except ValidationError:
            found.left_out["with settings that this version does not know"] += 1
            continue
        values, misfit = _in_space(ran, space)
        if misfit:
            found.left_out[misfit] += 1
            continue
        is_same = _fixed(ran, space) == _fixed(method, space)
        found.fitting.append(
            Fitting(
                trial=trial,
                density=ran.density,
                values=values,
                is_comparable=is_same and trial.task_digest == task_digest,
            )
        )
    return found


def _in_space(ran: MethodSpec, space: Space) -> tuple[dict[str, Any], str]:
    """Its values, and why they are none of the space, if so."""
    values: dict[str, Any] = {}
    for name, choice in space.items():
        value = place(name, choice, getattr(ran, name))
        if value is None:
            return {}, f"with {name} outside {_in_words(choice)}"
        values[name] = value
    return values, ""


def _in_words(choice: Distribution | list[Any]) -> str:
    if isinstance(choice, list):
        return f"{choice}"
    low, high = choice.log_uniform or choice.uniform or (0.0, 1.0)
    return f"{low:g} to {high:g}"


def _fixed(method: MethodSpec, searched: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in method.deciding().items() if k != "density" and k not in searched}
