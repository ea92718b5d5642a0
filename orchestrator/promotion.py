"""The gate between a picked model and the champion: the registered artifact is fetched, loaded
and evaluated again, and only what it then shows counts."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.bucket.places import here
from orchestrator.records import ModelRecord, Promotion, Size
from orchestrator.registry import Registry
from orchestrator.rules import parse_rule
from orchestrator.spec import AnyTask, CampaignSpec

logger = logging.getLogger(__name__)

REPRODUCTION_TOLERANCE = 1e-4
"""Largest difference between the recorded and the repeated test metric. The same weights on
another number of threads differ by about 1e-6."""

Runner = Callable[..., Any]


def evaluate_artifact(
    folder: str, task_spec: AnyTask, data: str
) -> tuple[dict[str, float], Size, str | None]:
    """Test metrics and size of an exported model, from its files alone, in a process that did not
    train it; and in what it breaks its contract, or None."""
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
    return evaluate(model, task, workers, "test"), recount(Path(folder), model, task), broken


def evaluate_version(
    uri: str, tracking_uri: str, name: str, version: str, task_spec: AnyTask, data: str
) -> tuple[dict[str, float], Size, str | None]:
    """`evaluate_artifact` of a registered version, fetched by the machine that evaluates it."""
    with tempfile.TemporaryDirectory(prefix="lowrank-artifact-") as temporary:
        folder = Registry(uri, tracking_uri).download(name, version, Path(temporary))
        return evaluate_artifact(str(folder), task_spec, data)


def _broken_contract(folder: Path, model: Any) -> str | None:
    """Whether an artifact answers like the model that was trained, by both ways to load it."""
    import transformers

    import lowrank.auto  # noqa: F401 - the registration
    from lowrank.contract import check_answers, load_reference
    from lowrank.errors import ExportError
    from lowrank.export import read_manifest

    try:
        reference = load_reference(folder)
        check_answers(model, reference, "load_pretrained")
        auto_class = getattr(transformers, read_manifest(folder)["metadata"]["auto_class"])
        loaded = auto_class.from_pretrained(folder, trust_remote_code=False)
        check_answers(loaded, reference, "from_pretrained")
    except ExportError as error:
        return str(error)
    return None


def registered_name(spec: CampaignSpec, task: str) -> str:
    return spec.promote.model.format(campaign=spec.name, task=task)


def register_and_promote(
    spec: CampaignSpec,
    task: AnyTask,
    record: ModelRecord,
    dense: ModelRecord,
    data: str,
    sentence: str,
    registry: Registry,
    run: Runner,
) -> Promotion:
    """Register the picked model as candidate; make it champion if it passes the gates."""
    name = registered_name(spec, task.name)
    version = registry.register(
        name,
        record,
        {"campaign": spec.name, "task": task.name, "spec_hash": spec.digest(), "why": sentence},
    )
    registry.set_candidate(name, version)
    return promote_version(spec, task, name, version, record, dense, data, registry, run)


def promote_version(
    spec: CampaignSpec,
    task: AnyTask,
    name: str,
    version: str,
    record: ModelRecord,
    dense: ModelRecord,
    data: str,
    registry: Registry,
    run: Runner,
) -> Promotion:
    """Fetch a version, evaluate it, check every gate, and move `champion` if all pass.

    Args:
        run: Calls `evaluate_version` where it should run (this process, or a cluster node).
    """
    uris = registry.uri, registry.tracking_uri
    test, size, broken = run(evaluate_version, *uris, name, version, task, data)
    checks = _checks(spec, record, dense, test, size, broken)
    failed = [check for check in checks if not check["passed"]]
    if failed:
        sentence = f"{name} version {version} stays candidate: " + "; ".join(
            f"{check['rule']} must hold, got {check['value']}" for check in failed
        )
        return _outcome(name, version, False, sentence, checks, test)
    before = registry.promote(
        name,
        version,
        {
            f"gate.{index}": f"{check['rule']}: pass ({check['value']})"
            for index, check in enumerate(checks)
        }
        | {"promoted_at": datetime.now(UTC).isoformat(timespec="seconds")},
    )
    sentence = f"{name} version {version} is champion: all {len(checks)} checks passed" + (
        f"; version {before} is kept as previous" if before else ""
    )
    return _outcome(name, version, True, sentence, checks, test)


def _checks(
    spec: CampaignSpec,
    record: ModelRecord,
    dense: ModelRecord,
    test: dict[str, float],
    size: Size,
    broken: str | None,
) -> list[dict[str, Any]]:
    metric = record.metric.name
    difference = abs(test[metric] - record.test[metric])
    checks: list[dict[str, Any]] = [
        {
            "rule": f"test {metric} of the downloaded artifact within "
            f"{REPRODUCTION_TOLERANCE:g} of the record",
            "value": f"{test[metric]:.6f}, recorded {record.test[metric]:.6f}",
            "passed": difference <= REPRODUCTION_TOLERANCE,
        },
        {
            "rule": "parameters of the downloaded artifact as recorded",
            "value": f"{size.num_parameters}, recorded {record.size.num_parameters}",
            "passed": size == replace(size, num_parameters=record.size.num_parameters),
        },
        {
            "rule": "the downloaded artifact answers like the model that was trained",
            "value": broken or "by load_pretrained and from_pretrained",
            "passed": broken is None,
        },
    ]
    # the gates look at test: validation has already been used to choose
    now = replace(record, validation=test, size=size)
    reference = replace(dense, validation=dense.test)
    for text in spec.promote.gates:
        rule = parse_rule(text)
        value = rule.value_of(now, reference)
        shown = rule.in_words(value) if math.isfinite(value) else "not measured"
        checks.append({"rule": str(rule), "value": shown, "passed": rule.check(value)})
    return checks


def _outcome(
    name: str,
    version: str,
    promoted: bool,
    sentence: str,
    checks: list[dict[str, Any]],
    test: dict[str, float],
) -> Promotion:
    logger.info(sentence)
    return Promotion(
        model=name,
        version=version,
        promoted=promoted,
        sentence=sentence,
        checks=checks,
        reproduced={name: value for name, value in test.items() if math.isfinite(value)},
    )
