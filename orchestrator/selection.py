"""Records and rules in, the chosen model and the sentence that says why out."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.campaign_records import Choice
from orchestrator.front.assess import REFERENCE_DROP
from orchestrator.front.dominance import Losses, epsilon_front, pareto_front
from orchestrator.front.knee import knee_distances
from orchestrator.front.noise import SeedNoise, pooled_noise
from orchestrator.front.objectives import largest_batch, loss_values
from orchestrator.front.settings import runs_of_settings
from orchestrator.naming import TrialNames
from orchestrator.records import Densities, ModelRecord
from orchestrator.rules import Rule, parse_rule
from orchestrator.wording import (
    against_dense,
    count,
    metric_name,
    number,
    percent,
    plural,
    ratio,
)

if TYPE_CHECKING:
    from orchestrator.spec_after import SelectSpec

_SUPERLATIVE = {
    "smallest": "the smallest",
    "fastest": "the fastest",
    "best": "the best in validation quality",
    "knee": "the knee",
}


def choose(
    records: Sequence[ModelRecord],
    dense: ModelRecord,
    select: SelectSpec,
    given_up: Collection[str] = (),
) -> Choice:
    """Pick one model of a task's Pareto front.

    Candidates are the members of the front that pass every rule; with `select.epsilon` also what is
    as good within it (`front.dominance.epsilon_front`). Among them `smallest` takes the
    fewest parameters of the whole model, `fastest` the lowest latency at the largest measured
    batch, `best` the best validation quality, and `knee` the greatest of
    `front.knee.knee_distances` over the candidates. Ties go to the better quality, then to the
    smaller key, so the order of `records` does not matter.

    Args:
        records: the finished trials.
        dense: the reference of the same task.
        select: rules and objective.
        given_up: keys of models that have no weights any more; none of them is chosen.

    Returns:
        The choice. Its key is None if nothing qualifies, and its sentence then says what was
        missed, and by how much.
    """
    ranked = _best_quality_first(records, dense)
    losses = loss_values(ranked, dense)
    mask = pareto_front(losses)
    front = [record for record, on_front in zip(ranked, mask, strict=True) if on_front]
    rules = [parse_rule(text) for text in select.require]
    passed = [record for record in ranked if not _missed(record, dense, rules)]
    keys = {record.key for record in passed}
    near = epsilon_front(losses, select.epsilon * _scale(losses, dense))
    could = [r for r, is_near in zip(ranked, near, strict=True) if is_near and r.key in keys]
    candidates = [record for record in could if record.key not in given_up]
    order = _ordered(candidates, dense, select)
    names = TrialNames.of(records)
    if order:
        sentence = _why(order, dense, select, names, _seed_noise(records))
    else:
        sentence = _why_none(front, candidates, passed, dense, rules, select, names)
    if len(could) > len(candidates):
        without = plural(len(could) - len(candidates), "model")
        sentence += f" Left out: {without} whose weights were given up (retention.budget)."
    return Choice(
        key=order[0].key if order else None,
        sentence=sentence,
        front=[record.key for record in front],
        passed=[record.key for record in passed],
    )


def worth_keeping(
    records: Sequence[ModelRecord], dense: ModelRecord, select: SelectSpec
) -> set[str]:
    """Keys of what `choose` may pick, whatever its rules: the front by all that was measured, and
    that of quality and size, for latencies are measured when all training is over."""
    if not records:
        return set()
    losses = loss_values(records, dense)
    tolerance = select.epsilon * _scale(losses, dense)
    near = epsilon_front(losses, tolerance) | epsilon_front(losses[:, :2], tolerance[:2])
    return {record.key for record, is_near in zip(records, near, strict=True) if is_near}


def _best_quality_first(records: Sequence[ModelRecord], dense: ModelRecord) -> list[ModelRecord]:
    losses = loss_values(records, dense)[:, 0]

    def position(index: int) -> tuple[float, str]:
        loss = float(losses[index])
        return (math.inf if math.isnan(loss) else loss, records[index].key)

    return [records[index] for index in sorted(range(len(records)), key=position)]


def _missed(record: ModelRecord, dense: ModelRecord, rules: Sequence[Rule]) -> list[Rule]:
    return [rule for rule in rules if not rule.check(rule.value_of(record, dense))]


def _scale(losses: Losses, dense: ModelRecord) -> Losses:
    """What an epsilon is a part of: per objective the figure of dense."""
    latency = float(np.nanmax(losses[:, 2])) if losses.shape[1] > 2 else math.nan
    scale = np.array([abs(dense.quality), dense.size.num_parameters, latency])
    return scale[: losses.shape[1]]


def _ordered(
    candidates: list[ModelRecord], dense: ModelRecord, select: SelectSpec
) -> list[ModelRecord]:
    """Candidates by the objective; those without a figure for it fall out."""
    losses, then = loss_values(candidates, dense), select.then
    reach = 0.0
    if then == "knee":
        objective = -knee_distances(losses)
    elif then == "fastest" and losses.shape[1] < 3:
        return []
    else:
        column = {"best": 0, "smallest": 1, "fastest": 2}[then]
        objective = losses[:, column]
        if len(candidates):
            reach = select.epsilon * float(_scale(losses, dense)[column])
    # the sort is stable, and candidates come best quality first
    order = [int(i) for i in objective.argsort(kind="stable") if not math.isnan(objective[i])]
    if order and reach:
        equal = [i for i in order if objective[i] <= objective[order[0]] + reach]
        equal.sort(key=lambda i: (losses[i, 1], i) if then == "best" else (0.0, i))
        order = equal + [i for i in order if i not in equal]
    return [candidates[i] for i in order]


def reference_drop(select: SelectSpec) -> float:
    """The loss of quality from which on a model is of no use: what `select` says, or the limit
    that its rules set, or `front.assess.REFERENCE_DROP`."""
    if select.reference_drop is not None:
        return select.reference_drop
    rules = [parse_rule(text) for text in select.require]
    limits = [r.value for r in rules if r.field == "quality_drop" and r.op in ("<", "<=")]
    return min((limit for limit in limits if limit > 0), default=REFERENCE_DROP)


def _seed_noise(records: Sequence[ModelRecord]) -> SeedNoise | None:
    groups = ([run.quality for run in runs] for runs in runs_of_settings(records))
    return pooled_noise([[q for q in values if math.isfinite(q)] for values in groups])


# --------------------------------------------------------------------------- sentences


def _why(
    order: list[ModelRecord],
    dense: ModelRecord,
    select: SelectSpec,
    names: TrialNames,
    noise: SeedNoise | None,
) -> str:
    chosen, rules = order[0], " and ".join(select.require)
    among = plural(len(order), "front model") + (f" passing {rules}" if rules else "")
    place = "the only one" if len(order) == 1 else _SUPERLATIVE[select.then]
    name = metric_name(chosen.metric.name)
    sentence = (
        f"Chosen: {_name(chosen, names)}, {place} of {among}. Validation {name} "
        f"{number(chosen.quality)} against {number(dense.quality)} dense "
        f"({against_dense(chosen.metric.drop(dense.quality, chosen.quality))}); "
        f"{_size_and_speed(chosen, dense)}."
    )
    if len(order) == 1:
        return sentence
    second = order[1]
    drop = against_dense(second.metric.drop(dense.quality, second.quality))
    return (
        f"{sentence} Runner-up: {_name(second, names)} with {number(second.quality)} ({drop}), "
        f"{_size_and_speed(second, dense)}; {_switch(chosen, second, dense, noise)}."
    )


def _switch(
    chosen: ModelRecord, second: ModelRecord, dense: ModelRecord, noise: SeedNoise | None
) -> str:
    """What it would cost, and win, to take the runner-up."""
    change = second.metric.drop(dense.quality, second.quality) - chosen.metric.drop(
        dense.quality, chosen.quality
    )
    parameters = second.size.num_parameters - chosen.size.num_parameters
    share = parameters / dense.size.num_parameters
    batch = largest_batch([chosen, second])
    slower = chosen.speedup(batch) - second.speedup(batch)
    figures = [
        (change, f"{percent(abs(change)).replace('%', ' points')} of quality"),
        (parameters, f"{count(abs(parameters))} parameters ({percent(abs(share))} of dense)"),
        (slower, f"{ratio(abs(slower))} of speed"),
    ]
    costs = [words for worse, words in figures if worse > 0]
    wins = [words for worse, words in figures if worse < 0]
    text = f"to switch to it costs {' and '.join(costs) or 'nothing'}"
    if wins:
        text += f" and wins {' and '.join(wins)}"
    if noise is not None and 0 < abs(second.quality - chosen.quality) <= noise.half_width(1) * (
        math.sqrt(2)
    ):
        text += ", though seeds of one setting differ in quality by as much"
    return text


def _why_none(
    front: list[ModelRecord],
    candidates: list[ModelRecord],
    passed: list[ModelRecord],
    dense: ModelRecord,
    rules: Sequence[Rule],
    select: SelectSpec,
    names: TrialNames,
) -> str:
    if not front:
        return "No model was chosen: no trial finished with figures that can be compared."
    if candidates:
        return (
            f"No model was chosen: `{select.then}` cannot rank the "
            f"{plural(len(candidates), 'front model')} that passed, as the figures it needs "
            "were not measured or are not finite."
        )
    nearest = min(front, key=lambda record: _worst_shortfall(record, dense, rules))
    misses = " and ".join(_miss(rule, nearest, dense) for rule in _missed(nearest, dense, rules))
    sentence = (
        f"No model was chosen: none of {plural(len(front), 'front model')} passes every rule. "
        f"Nearest is {_name(nearest, names)}: {misses}."
    )
    if passed:
        sentence += f" ({plural(len(passed), 'dominated trial')} off the front would pass.)"
    return sentence


def _worst_shortfall(record: ModelRecord, dense: ModelRecord, rules: Sequence[Rule]) -> float:
    """The rule that is missed most, relative to its limit, so that units do not matter."""
    return max(
        rule.shortfall(rule.value_of(record, dense)) / (abs(rule.value) or 1.0) for rule in rules
    )


def _miss(rule: Rule, record: ModelRecord, dense: ModelRecord) -> str:
    value = rule.value_of(record, dense)
    if math.isnan(value):
        return f"{rule} was not measured"
    by = rule.in_words(rule.shortfall(value)).replace("%", " points")
    return f"{rule.field} is {rule.in_words(value)}, {by} from the required {rule}"


def _name(record: ModelRecord, names: TrialNames) -> str:
    return f"{names.full(record)} ({record.key[:8]})"


def _size_and_speed(record: ModelRecord, dense: ModelRecord) -> str:
    share = percent(Densities.of(record.size, dense.size).parameters)
    text = f"{count(record.size.num_parameters)} parameters, {share} of dense"
    batch = largest_batch([record])
    if batch is None:
        return f"{text}; speed not measured"
    return f"{text}; {ratio(record.speedup(batch))} the speed of dense at batch {batch}"
