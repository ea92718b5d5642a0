"""What a registered model must show before it becomes champion: each check with its rule and the
value that was found."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.bucket.places import here
from orchestrator.load_test import SIDE_BY_SIDE, LoadTest, load_test
from orchestrator.records import ModelRecord, Size
from orchestrator.rules import parse_rule
from orchestrator.spec_after import PromoteSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.wording import milliseconds

REPRODUCTION_TOLERANCE = 1e-4
"""Largest difference between the recorded and the repeated test metric. The same weights on
another number of threads differ by about 1e-6."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a fetched artifact showed."""

    test: dict[str, float]
    """Metrics on test."""
    size: Size
    broken: str | None
    """In what it breaks its contract."""
    load: LoadTest | str | None = None
    """A text: why it could not be asked. None: it was not to be."""


def evaluate_version(
    uris: tuple[str, str], name: str, version: str, task: AnyTask, data: str, requests: int = 0
) -> Evidence:
    """Fetch a version to where this runs, and look at it.

    Args:
        uris: Of registry and tracking store.
        name: Of the registered model.
        version: Of it.
        task: Whose test split it is evaluated on.
        data: Place (`bucket.places`) of the prepared data.
        requests: Of the load test; 0 leaves it out.
    """
    from orchestrator.errors import RegistryError
    from orchestrator.registry import Registry

    with tempfile.TemporaryDirectory(prefix="lowrank-artifact-") as temporary:
        root, folder = Registry(*uris).download(name, version, Path(temporary))
        found = evaluate_artifact(str(folder), task, data)
        if not requests:
            return found
        try:
            return replace(found, load=load_test(root, requests))
        except RegistryError as error:
            return replace(found, load=str(error))


def evaluate_artifact(folder: str, task_spec: AnyTask, data: str) -> Evidence:
    """An exported model from its files alone, in a process that did not train it."""
    from lowrank.hf import load_pretrained
    from orchestrator.data.prepare import PreparedData
    from orchestrator.export_model import recount
    from orchestrator.tasks import make_task
    from orchestrator.training import evaluate
    from orchestrator.workers import LocalWorkers

    workers = LocalWorkers()
    task = make_task(task_spec, PreparedData.open(Path(here(data))), seed=0)
    model = load_pretrained(folder)
    broken = _broken_contract(Path(folder), model)
    model = model.to(workers.device)
    return Evidence(
        test=evaluate(model, task, workers, "test"),
        size=recount(Path(folder), model, task),
        broken=broken,
    )


def _broken_contract(folder: Path, model: Any) -> str | None:
    """Whether an artifact answers like the model that was trained, by both ways to load it."""
    import transformers

    import lowrank.auto  # noqa: F401 - the registration
    from lowrank.contract import check_answers, load_reference
    from lowrank.errors import ExportError
    from lowrank.manifest import read_manifest

    try:
        reference = load_reference(folder)
        check_answers(model, reference, "load_pretrained")
        auto_class = getattr(transformers, read_manifest(folder)["metadata"]["auto_class"])
        loaded = auto_class.from_pretrained(folder, trust_remote_code=False)
        check_answers(loaded, reference, "from_pretrained")
    except ExportError as error:
        return str(error)
    return None


def check_all(
    promote: PromoteSpec,
    license_: str | None,
    record: ModelRecord,
    dense: ModelRecord,
    found: Evidence,
) -> list[dict[str, Any]]:
    """Every check, passed or not: rule, value, passed."""
    checks = _against_record(record, found)
    if promote.load_test:
        checks.append(_of_load(found.load))
    if promote.require_license:
        checks.append(_check("the model states its license", license_ or "none", bool(license_)))
    # the gates look at test: validation has already been used to choose
    now = replace(record, validation=found.test, size=found.size)
    return checks + _of_rules(promote.gates, now, replace(dense, validation=dense.test))


def _check(rule: str, value: str, passed: bool) -> dict[str, Any]:
    return {"rule": rule, "value": value, "passed": passed}


def _against_record(record: ModelRecord, found: Evidence) -> list[dict[str, Any]]:
    """Whether the artifact is what the record says."""
    metric, size = record.metric.name, record.size
    test, recorded = found.test[metric], record.test[metric]
    return [
        _check(
            f"test {metric} of the downloaded artifact within {REPRODUCTION_TOLERANCE:g} of the "
            "record",
            f"{test:.6f}, recorded {recorded:.6f}",
            abs(test - recorded) <= REPRODUCTION_TOLERANCE,
        ),
        _check(
            "parameters of the downloaded artifact as recorded",
            f"{found.size.num_parameters}, recorded {size.num_parameters}",
            found.size.num_parameters == size.num_parameters,
        ),
        _check(
            "the downloaded artifact answers like the model that was trained",
            found.broken or "by load_pretrained and from_pretrained",
            found.broken is None,
        ),
    ]


def _of_load(load: LoadTest | str | None) -> dict[str, Any]:
    rule = f"answers every request of the load test alike, {SIDE_BY_SIDE} at a time"
    if not isinstance(load, LoadTest):
        return _check(rule, load or "not asked", False)
    times = f"{load.requests} requests, median {milliseconds(load.p50_ms)}, "
    value = load.failure or f"{times}95 % within {milliseconds(load.p95_ms)}"
    return _check(rule, value, load.failure is None)


def _of_rules(
    texts: Sequence[str], record: ModelRecord, dense: ModelRecord
) -> list[dict[str, Any]]:
    checks = []
    for text in texts:
        rule = parse_rule(text)
        value = rule.value_of(record, dense)
        shown = rule.in_words(value) if math.isfinite(value) else "not measured"
        checks.append(_check(str(rule), shown, rule.check(value)))
    return checks
