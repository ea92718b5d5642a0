"""What a changed spec does to a campaign that has begun under its name.

A model is known by a key of all that decides it, so a spec that asks for more keeps what is there.
One that asks for something else would leave finished models behind, and that is not done silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import CampaignError
from orchestrator.layout import Layout
from orchestrator.records import RECORD
from orchestrator.search import dense_key, expected_plans
from orchestrator.spec import CampaignSpec, content_hash
from orchestrator.spec_io import load_spec

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
    """Names of models that the first asks for and the second does not."""
    num_models: int
    """That the first asks for."""

    @property
    def text(self) -> str:
        more = len(self.differences) - MOST
        shown = self.differences[:MOST] + ([f"and {more} more"] if more > 0 else [])
        return "\n".join(f"  {each}" for each in shown)


def check_change(
    layout: Layout, spec: CampaignSpec, accept: bool, say: Callable[[str], None]
) -> None:
    """Compare a spec with the one that the campaign's folder was begun with.

    Args:
        layout: Of the campaign.
        spec: As asked for now, resolved.
        accept: Go on whatever has changed.
        say: Hears of a change that is gone along with.

    Raises:
        SpecChangedError: Finished models would no longer be asked for.
    """
    if not layout.spec.exists() or not any((layout.root / "models").glob(f"*/{RECORD}")):
        return
    try:
        change = compare(load_spec(layout.spec), spec)
    except CampaignError as error:
        say(f"the spec that this campaign began with cannot be compared: {error}")
        return
    if not change.differences:
        return
    if change.dropped and not accept:
        raise SpecChangedError(
            f"campaign {spec.name!r} in {layout.root} has begun with another spec, and "
            f"{len(change.dropped)} of its {change.num_models} models are no longer asked for:\n"
            f"{change.text}\n"
            "Give the campaign another name, or go on with --changed: the models stay on disk and "
            "in MLflow, and are no longer part of the result"
        )
    kept = f"{len(change.dropped)} models are left behind" if change.dropped else "all models stay"
    say(f"the spec has changed, {kept}:\n{change.text}")


def compare(old: CampaignSpec, new: CampaignSpec) -> Change:
    """Field by field, and by the models that are asked for."""
    before, after = dict(_fields(old)), dict(_fields(new))
    differences = [
        f"{path}: {_short(before.get(path))} -> {_short(after.get(path))}"
        for path in before | after
        if before.get(path) != after.get(path)
    ]
    models, kept = _models(old), _models(new)
    dropped = [name for key, name in models.items() if key not in kept]
    return Change(differences=differences, dropped=dropped, num_models=len(models))


def _models(spec: CampaignSpec) -> dict[str, str]:
    """Key -> name. Data count by what the spec says of them, for they have not been read yet."""
    found = {}
    for task in spec.tasks:
        data = content_hash(task.data.model_dump(mode="json"))
        found[dense_key(spec, task, data)] = f"{task.name} dense"
        for plan in expected_plans(spec, task, data):
            found[plan.key] = f"{task.name} {plan.name}"
    return found


def _fields(spec: CampaignSpec) -> Iterator[tuple[str, Any]]:
    """Path -> value of what people write; tasks by their name, whatever their order."""
    values = spec.model_dump(mode="json")
    # where it lies and who hears of it; a stored copy of the latter hides passwords
    for name in ("storage", "tracking"):
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
