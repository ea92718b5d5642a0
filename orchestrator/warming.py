"""The start of a campaign with settings from earlier ones: reads them once, says what it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from orchestrator.earlier import EarlierTrial, Readings
from orchestrator.method_search import methods_of
from orchestrator.spec import CampaignSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.tracking.earlier_runs import EarlierRuns, Found
from orchestrator.wording import listed, plural

Say = Callable[[str], None]


def read_earlier(
    spec: CampaignSpec,
    hashes: Mapping[str, str],
    metrics: Mapping[str, str],
    readings: Readings,
    uri: str,
    say: Say,
) -> None:
    """Add what has not been read yet to `readings`, which are not saved.

    Args:
        spec: The campaign.
        hashes: Task -> hash of its prepared data.
        metrics: Task -> name of its metric.
        readings: What has been read before.
        uri: Of the tracking store, which is there.
        say: Hears what was found and what is used.

    Raises:
        WarmStartError: An earlier campaign is not there.
        TrackingError: The store does not answer.
    """
    warm = spec.search.warm_start
    if warm is None:
        return
    if not all(readings.knows(spec, task, hashes[task.name]) for task in spec.tasks):
        runs = EarlierRuns(uri, warm.campaigns, spec.name)
        for task in spec.tasks:
            data_hash = hashes[task.name]
            if not readings.knows(spec, task, data_hash):
                found = runs.of(data_hash, metrics[task.name])
                readings.add(spec, task, data_hash, found.trials)
                say(f"{task.name}: {_found_in_words(warm.campaigns, found)}")
    for task in spec.tasks:
        earlier = readings.of(spec, task, hashes[task.name])
        for line in _used_in_words(spec, task, hashes[task.name], earlier) if earlier else ():
            say(f"{task.name}: {line}")


def _found_in_words(campaigns: list[str], found: Found) -> str:
    words = f"warm start from {listed(campaigns)}: "
    if found.trials:
        words += plural(len(found.trials), "finished trial")
    elif found.left_out:
        words += "none of their trials fits, so the search begins from nothing"
    else:
        words += "they have no trials, so the search begins from nothing"
    reasons = [f"{number} {why}" for why, number in sorted(found.left_out.items())]
    return words + (f"; left out: {', '.join(reasons)}" if reasons else "")


def _used_in_words(
    spec: CampaignSpec, task: AnyTask, data_hash: str, earlier: list[EarlierTrial]
) -> Iterator[str]:
    """Per method that searches something."""
    there = sorted({f"{each.method_name} ({each.config.get('kind')})" for each in earlier})
    for method in methods_of(spec, task, data_hash, earlier):
        if not method.fields:
            continue
        if method.warmth.total:
            yield f"{method.name}: {method.warmth.text}"
        else:
            why = "no earlier trial is of its name and kind"
            yield f"{method.name}: {why}; there are {listed(there)}"
