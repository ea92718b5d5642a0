"""The gate between a picked model and the champion: the registered artifact is fetched, loaded
and evaluated again, and only what it then shows counts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.campaign_records import Promotion
from orchestrator.promotion.card import license_of, model_card
from orchestrator.promotion.checks import Evidence, check_all, evaluate_version
from orchestrator.records import ModelRecord
from orchestrator.registry import CHAMPION, Registry
from orchestrator.spec import CampaignSpec
from orchestrator.spec_tasks import AnyTask

logger = logging.getLogger(__name__)

Runner = Callable[..., Any]
"""Calls a function where it should run: in this process, or on a node of the cluster."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model that is to become champion, and what it is judged by."""

    spec: CampaignSpec
    task: AnyTask
    record: ModelRecord
    dense: ModelRecord
    data: str
    """Place (`bucket.places`) of the prepared data."""
    data_hash: str
    why: str
    """One sentence: of the choice, or of the person who asks for it."""

    @property
    def name(self) -> str:
        """Of the registered model."""
        return registered_name(self.spec, self.task.name)

    def lineage(self) -> dict[str, str]:
        """Where the model comes from: tags of its version."""
        found = {
            "campaign": self.spec.name,
            "task": self.task.name,
            "spec_hash": self.spec.digest(),
            "data_hash": self.data_hash,
            "dense.key": self.dense.key,
            "dense.run": self.dense.mlflow_run_id or "",
            "dense.weights_sha256": self.dense.export_sha256,
            "why": self.why,
        }
        license_ = license_of(self.spec, self.task)
        return found | ({"license": license_} if license_ else {})


def registered_name(spec: CampaignSpec, task: str) -> str:
    return spec.promote.model.format(campaign=spec.name, task=task)


def register_and_promote(case: Case, registry: Registry, run: Runner) -> Promotion:
    """Register the picked model as candidate; make it champion if it passes the gates."""
    version = registry.register(case.name, case.record, case.lineage())
    registry.set_candidate(case.name, version)
    registry.describe(case.name, version, model_card(case, None))
    return promote_version(case, case.name, version, registry, run)


def promote_version(
    case: Case,
    name: str,
    version: str,
    registry: Registry,
    run: Runner,
    approved: bool = False,
) -> Promotion:
    """Fetch a version, evaluate it, check every gate, and move `champion` if all pass.

    Args:
        case: What it is judged by.
        name: Of the registered model; another than the case's for a copy.
        version: Of it.
        registry: Where it is.
        run: Calls `evaluate_version`.
        approved: Whether a person asks for it; without one `promote.approval` keeps it waiting.
    """
    outcome = examine(case, name, version, registry, run)
    failed = [check for check in outcome.checks if not check["passed"]]
    if failed:
        sentence = f"{name} version {version} stays candidate: " + "; ".join(
            f"{check['rule']} must hold, got {check['value']}" for check in failed
        )
        registry.tell(name, "refuse", version, sentence)
        return _with(outcome, False, sentence)
    passed = f"all {len(outcome.checks)} checks passed"
    registry.describe(name, version, model_card(case, outcome))
    if case.spec.promote.approval and not approved and registry.version(name, CHAMPION) != version:
        sentence = (
            f"{name} version {version} waits for approval: {passed}; a person says "
            f"`lowrank promote SPEC --task {case.task.name}`"
        )
        registry.tell(name, "wait", version, sentence)
        return _with(outcome, False, sentence)
    before = registry.promote(name, version, _tags(outcome), case.why)
    sentence = f"{name} version {version} is champion: {passed}" + (
        f"; version {before} is kept as previous" if before else ""
    )
    return _with(outcome, True, sentence)


def examine(case: Case, name: str, version: str, registry: Registry, run: Runner) -> Promotion:
    """All checks of a version, without moving anything."""
    promote = case.spec.promote
    found: Evidence = run(
        evaluate_version, registry.uris, name, version, case.task, case.data, promote.load_test
    )
    license_ = license_of(case.spec, case.task)
    checks = check_all(promote, license_, case.record, case.dense, found)
    failed = sum(not check["passed"] for check in checks)
    verdict = f"would fail {failed} of" if failed else "would pass all"
    return Promotion(
        model=name,
        version=version,
        promoted=False,
        sentence=f"{name} version {version} {verdict} {len(checks)} checks; nothing was moved",
        checks=checks,
        reproduced={name: value for name, value in found.test.items() if math.isfinite(value)},
    )


def _tags(outcome: Promotion) -> dict[str, str]:
    """What a champion passed."""
    gates = {
        f"gate.{index}": f"{check['rule']}: pass ({check['value']})"
        for index, check in enumerate(outcome.checks)
    }
    return gates | {"promoted_at": datetime.now(UTC).isoformat(timespec="seconds")}


def _with(outcome: Promotion, promoted: bool, sentence: str) -> Promotion:
    logger.info(sentence)
    return replace(outcome, promoted=promoted, sentence=sentence)


COMPARED = ("test.", "validation.", "density.", "speedup.", "num_", "spec_", "data_", "license")
"""Beginnings of the tags in which two versions are worth comparing."""


def difference(registry: Registry, name: str, version: str) -> list[tuple[str, str, str]] | None:
    """A version beside today's champion: what, the champion's, the version's; nothing if it is the
    champion, None if there is none."""
    champion = registry.version(name, CHAMPION)
    if champion is None:
        return None
    if champion == version:
        return []
    ours, theirs = registry.tags(name, version), registry.tags(name, champion)
    names = sorted(k for k in ours | theirs if k.startswith(COMPARED))
    rows = [(each, theirs.get(each, ""), ours.get(each, "")) for each in names]
    return [("version", champion, version), *(row for row in rows if row[1] != row[2])]
