"""Whether the search of a campaign and the method of a task go together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.spec_block import errors_of, rule
from orchestrator.spec_ladder import misplaced
from orchestrator.spec_method import MethodSpec, merge_method
from orchestrator.spec_search import ComparedMethod, SearchSpec
from orchestrator.spec_stopping import unreached
from orchestrator.spec_values import bad_values, within


def conflicts(search: SearchSpec, method: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the method of a task refuses of the search, where several fields are concerned.

    Args:
        search: Its values are right by themselves.
        method: Every field of the task's method, valid.

    Yields:
        Errors with `loc` relative to the block `search`.
    """
    unused = set(search.fields) if search.methods else set()
    for name, compared in search.methods.items() or [("", ComparedMethod())]:
        place = ("methods", name, "fields")
        if refused := misfits(method, compared.changes):
            yield within(place, refused)
            continue
        merged = merge_method(method, compared.changes)
        if search.ladder is not None:
            yield from misplaced(search.ladder, merged, {**search.fields, **compared.searched})
        shared = search.shared_fields(compared, merged["kind"])
        unused -= shared.keys()
        for where, fields in ((("fields",), shared), (place, compared.searched)):
            errors = [e for k, choice in fields.items() for e in bad_values(k, choice, merged)]
            if errors:
                yield within(where, errors)
    if unused:
        message = "is given by each of search.methods itself, or has no meaning for its kind"
        yield within(("fields",), [rule((name,), message) for name in sorted(unused)])


def unreached_rungs(
    search: SearchSpec, method: dict[str, Any], evaluate_every: int, dense_steps: int
) -> Iterator[dict[str, Any]]:
    """What the steps of a task's methods make of `search.stopping`, at its place in `search`.

    Args:
        search: Without conflicts.
        method: Every field of the task's method, valid.
        evaluate_every: Of the task.
        dense_steps: Of its reference.
    """
    if search.stopping is None:
        return
    known = {}
    for name, compared in search.methods.items() or [("", ComparedMethod())]:
        spec = MethodSpec.model_validate(merge_method(method, compared.changes))
        searched = search.shared_fields(compared, spec.kind) | compared.searched
        # of steps that are drawn nothing is known
        if not searched.keys() & {"kind", "steps", "gated_fraction"}:
            known[name or spec.kind] = spec
    for reason in unreached(search.stopping, known, evaluate_every, dense_steps):
        yield rule(("stopping", "rungs"), reason)


def misfits(method: dict[str, Any], changes: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wrong with `method` once `changes` are part of it, at the change to blame."""
    errors = []
    for found in errors_of(MethodSpec, merge_method(method, changes)) if changes else ():
        field = found["loc"][0] if found["loc"] else None
        blamed = field if field in changes else "kind" if "kind" in changes else next(iter(changes))
        below = found["loc"][1:] if blamed == field else ()
        errors.append({**found, "loc": (blamed, *below)})
    return errors
