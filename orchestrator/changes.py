"""What a changed spec does to a campaign that has begun under its name.

A model is known by a key of all that decides it, so a spec that asks for more keeps what is there.
One that asks for something else would leave finished models behind, and that is not done silently.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.draws import Draws
from orchestrator.earlier import Readings
from orchestrator.errors import CampaignError
from orchestrator.layout import Layout
from orchestrator.records import RECORD, ModelRecord, RecordError
from orchestrator.search import plan_trials
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import load_spec
from orchestrator.spec_tasks import AnyTask
from orchestrator.stopping.notes import read_notes
from orchestrator.trial_keys import dense_key
from orchestrator.wording import plural

LONGEST = 60
"""Characters of a value in a message."""
MOST = 20
"""Differences in a message."""


class SpecChangedError(CampaignError):
    """The campaign's folder holds models that the spec no longer asks for."""

    exit_code = 2


@dataclass(frozen=True)
class Change:
    """From one spec of a campaign to another."""

    differences: list[str]
    """`method.steps: 800 -> 900`, in the order of the spec."""
    dropped: list[str]
    """Names of finished models that the first asks for and the second does not."""
    num_models: int
    """Finished ones that the first asks for."""

    @property
    def text(self) -> str:
        more = len(self.differences) - MOST
        shown = self.differences[:MOST] + ([f"and {more} more"] if more > 0 else [])
        return "\n".join(f"  {each}" for each in shown)


def check_change(
    layout: Layout,
    spec: CampaignSpec,
    hashes: Mapping[str, str],
    accept: bool,
    say: Callable[[str], None],
    readings: Readings | None = None,
) -> None:
    """Compare a spec with the one that the campaign's folder was begun with.

    Args:
        layout: Of the campaign.
        spec: As asked for now, resolved.
        hashes: Task -> hash of its prepared data.
        accept: Go on whatever has changed.
        say: Hears of a change that is gone along with.
        readings: What either spec has from earlier campaigns.

    Raises:
        SpecChangedError: Finished models would no longer be asked for.
    """
    if not layout.spec.exists():
        return
    try:
        old, draws = load_spec(layout.spec), Draws(layout.draws)
        stopped = {note.key for note in read_notes(layout) if note.stopped}
        change = compare(old, spec, hashes, _finished(layout), draws, readings, stopped)
    except CampaignError as error:
        say(f"the spec that this campaign began with cannot be compared: {error}")
        return
    if not change.differences or not change.num_models:
        return
    if change.dropped and not accept:
        raise SpecChangedError(
            f"campaign {spec.name!r} in {layout.root} has begun with another spec, and "
            f"{len(change.dropped)} of its {plural(change.num_models, 'finished model')} "
            f"would be left behind:\n{change.text}\n"
            "Give the campaign another name, or go on with --changed: the models stay on disk and "
            "in MLflow, and are no longer part of the result"
        )
    kept = f"{plural(len(change.dropped), 'model')} left behind" if change.dropped else "all stay"
    say(f"the spec has changed; of {change.num_models} finished models {kept}:\n{change.text}")


def compare(
    old: CampaignSpec,
    new: CampaignSpec,
    hashes: Mapping[str, str],
    finished: Mapping[str, ModelRecord],
    draws: Draws | None = None,
    readings: Readings | None = None,
    stopped: Collection[str] = (),
) -> Change:
    """Field by field, and by the finished models that are asked for.

    Args:
        old: The spec of before.
        new: The spec of now.
        hashes: Of now: task -> hash of its prepared data.
        finished: Key -> record.
        draws: What a sampler has suggested.
        readings: What either spec has from earlier campaigns.
        stopped: Keys of draws that were stopped early: a spec that stops draws asks for what
            follows from the others.
    """
    draws, readings = draws or Draws(), readings or Readings()
    before, after = dict(_fields(old)), dict(_fields(new))
    differences = [
        f"{path}: {_short(before.get(path))} -> {_short(after.get(path))}"
        for path in before | after
        if before.get(path) != after.get(path)
    ]
    known = list(finished.values()) if differences else []
    wanted = {
        name
        for task in new.tasks
        for name in _asked_for(new, task, hashes[task.name], known, draws, readings, stopped)
    }
    had: dict[str, str] = {}
    for task in old.tasks:
        own = [record for record in known if record.task == task.name]
        asked = _asked_for(old, task, hashes.get(task.name, ""), known, draws, readings, stopped)
        # where none is asked for the data have changed, or how they are read
        same_data = any(record.key in asked for record in own)
        had |= {r.key: asked.get(r.key, task.name) for r in own if r.key in asked or not same_data}
    dropped = [name for key, name in had.items() if key not in wanted]
    return Change(differences=differences, dropped=dropped, num_models=len(had))


def _asked_for(
    spec: CampaignSpec,
    task: AnyTask,
    data_hash: str,
    finished: Sequence[ModelRecord],
    draws: Draws,
    readings: Readings,
    stopped: Collection[str],
) -> dict[str, str]:
    """Key -> name of every model of a task, those among them that follow from what is finished."""
    own = [record for record in finished if record.task == task.name]
    plans = plan_trials(
        spec,
        task,
        data_hash,
        {record.key: record.quality for record in own},
        stopped if spec.search.stopping is not None else (),
        higher_is_better=any(record.metric.higher_is_better for record in own),
        excess={record.key: record.excess for record in own},
        draws=draws,
        earlier=readings.of(spec, task, data_hash),
    )
    names = {plan.key: plan.name for plan in plans}
    return {dense_key(spec, task, data_hash): "dense"} | names


def _finished(layout: Layout) -> dict[str, ModelRecord]:
    """The records that can be read; of the others the campaign will say what is wrong."""
    found = {}
    for path in sorted((layout.root / "models").glob(f"*/{RECORD}")):
        with suppress(RecordError):
            record = ModelRecord.load(path)
            found[record.key] = record
    return found


def _fields(spec: CampaignSpec) -> Iterator[tuple[str, Any]]:
    """Path -> value of what people write; tasks by their name, whatever their order."""
    values = spec.model_dump(mode="json")
    # where it lies, how much of it, and who hears of it; a stored copy of that hides passwords
    for name in ("storage", "tracking", "retention"):
        del values[name]
    values["tasks"] = {task.pop("name"): task for task in values["tasks"]}
    yield from _flat(values, "")


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
