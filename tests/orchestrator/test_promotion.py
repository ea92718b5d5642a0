"""The gate to the registry's champion, with the real artifact of a real small model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lowrank.errors import ExportError
from lowrank.export import sha256_of
from orchestrator.campaign_records import Promotion
from orchestrator.promotion import Case, promote_version, register_and_promote, registered_name
from orchestrator.promotion.checks import Evidence, evaluate_artifact
from orchestrator.records import ModelRecord
from orchestrator.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry
from orchestrator.spec import CampaignSpec
from orchestrator.tracking import RunWriter, Tracking
from orchestrator.wording import count
from tests.orchestrator.small import Family


def here(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


@dataclass
class Desk:
    """Logs models of a family and puts them before the gate."""

    family: Family
    tracking: Tracking
    registry: Registry

    def logged(self, index: int) -> ModelRecord:
        record = self.family.trials[index]
        run = self.tracking.model_run(record.key, "p", record.key, {}, {})
        uri = RunWriter(self.tracking.uri, run).model(record, self.family.task.kind)
        return replace(record, mlflow_run_id=run, model_uri=uri)

    def spec(self, *gates: str, **promote: Any) -> CampaignSpec:
        return CampaignSpec.model_validate(
            {
                "name": "campaign",
                "tasks": [self.family.task.model_dump()],
                "search": {"density": [0.5, 0.25]},
                "promote": {"gates": list(gates)} | promote,
            }
        )

    def case(self, record: ModelRecord, *gates: str, **promote: Any) -> Case:
        spec = self.spec(*gates, **promote)
        return Case(
            spec=spec,
            task=spec.tasks[0],
            record=record,
            dense=self.family.dense,
            data=str(self.family.data.folder),
            data_hash=self.family.data.content_hash,
            why="smallest of 2",
        )

    def submit(self, record: ModelRecord, *gates: str, **promote: Any) -> Promotion:
        return register_and_promote(self.case(record, *gates, **promote), self.registry, here)

    def aliases(self) -> list[str | None]:
        name = f"campaign-{self.family.task.name}"
        return [self.registry.version(name, alias) for alias in (CANDIDATE, CHAMPION, PREVIOUS)]

    def artifact(self, record: ModelRecord) -> Path:
        """Folder of the export inside the store."""
        (found,) = Path(
            self.tracking.client.get_logged_model(
                record.model_uri.removeprefix("models:/")
            ).artifact_location.removeprefix("file://")
        ).rglob("lowrank.json")
        return found.parent


@pytest.fixture
def desk(store: str, tmp_path: Path, either: Family) -> Desk:
    tracking = Tracking(store, "campaign", tmp_path / "artifacts")
    return Desk(either, tracking, Registry(store))


def test_what_passes_becomes_champion(desk: Desk):
    record = desk.logged(0)
    outcome = desk.submit(record, "density <= 50%", "quality_drop <= 1000%")
    name = f"campaign-{desk.family.task.name}"
    assert (outcome.promoted, outcome.model, outcome.version) == (True, name, "1")
    assert outcome.sentence == f"{name} version 1 is champion: all 5 checks passed"
    assert [check["passed"] for check in outcome.checks] == [True] * 5
    assert outcome.reproduced == pytest.approx(record.test, abs=1e-6)
    assert desk.aliases() == ["1", "1", None]
    tags = desk.registry.tags(name, "1")
    assert tags["gate.3"] == f"density <= 50%: pass ({record.densities.prunable:.1%})"
    assert (tags["why"], tags["campaign"], tags["task"]) == (
        "smallest of 2",
        "campaign",
        desk.family.task.name,
    )
    assert "promoted_at" in tags
    # the next one takes its place; the same again changes nothing
    second = desk.logged(1)
    later = desk.submit(second)
    assert later.sentence.endswith("version 1 is kept as previous")
    assert desk.submit(second).promoted
    assert desk.aliases() == ["2", "2", "1"]


def test_a_failed_gate_keeps_it_candidate_and_says_why(desk: Desk):
    first, second = desk.logged(0), desk.logged(1)
    desk.submit(first)
    outcome = desk.submit(second, "density <= 20%", "bytes <= 100%", "speedup >= 1.2")
    assert not outcome.promoted
    shown = f"{second.densities.prunable:.1%}"
    assert outcome.sentence == (
        f"campaign-{desk.family.task.name} version 2 stays candidate: "
        f"density <= 20% must hold, got {shown}; speedup >= 1.2 must hold, got not measured"
    )
    assert [check["passed"] for check in outcome.checks] == [True, True, True, False, True, False]
    assert desk.aliases() == ["2", "1", None]


def test_gates_look_at_the_artifact_not_at_the_record(desk: Desk):
    """The record claims half the bytes that the file has."""
    record = desk.logged(0)
    flattering = replace(record, size=replace(record.size, num_bytes=1))
    share = record.densities.bytes
    outcome = desk.submit(flattering, f"bytes <= {share - 0.01:.2f}")
    assert not outcome.promoted
    assert outcome.checks[-1]["value"] == f"{share:.1%}"


def test_gates_look_at_test_not_at_validation(desk: Desk):
    record, dense = desk.logged(0), desk.family.dense
    name = record.metric.name
    drop = record.metric.drop(dense.test[name], record.test[name])
    lucky = replace(record, validation={name: dense.quality})
    outcome = desk.submit(lucky, "quality_drop <= 1000%")
    assert float(outcome.checks[-1]["value"].rstrip("%")) == pytest.approx(drop * 100, abs=0.06)


def tamper(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Other weights under a manifest that fits them: only an evaluation can tell."""
    weights = folder / "model.safetensors"
    tensors = {name: change(tensor) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    manifest = json.loads((folder / "lowrank.json").read_text())
    manifest["weights_sha256"] = sha256_of(weights)
    (folder / "lowrank.json").write_text(json.dumps(manifest))


def test_other_weights_under_the_same_name_are_noticed(desk: Desk):
    record = desk.logged(0)
    tamper(desk.artifact(record), lambda tensor: -2 * tensor.flip(0).contiguous())
    outcome = desk.submit(record)
    assert not outcome.promoted
    name = record.metric.name
    assert f"test {name} of the downloaded artifact within 0.0001 of the record must hold, got" in (
        outcome.sentence
    )
    assert outcome.reproduced[name] != pytest.approx(record.test[name], abs=1e-4)
    assert desk.aliases() == ["1", None, None]


def test_weights_that_score_the_same_and_answer_otherwise_are_noticed(desk: Desk):
    """A thousandth off: no metric moves by more than its tolerance."""
    record = desk.logged(0)
    tamper(desk.artifact(record), lambda tensor: tensor * 1.001 if tensor.ndim > 1 else tensor)
    outcome = desk.submit(record)
    assert not outcome.promoted
    contract = outcome.checks[2]
    assert contract["rule"] == "the downloaded artifact answers like the model that was trained"
    assert contract["value"].startswith("load_pretrained: logits must be within 1e-05 of the model")


def test_an_artifact_without_the_models_answers_is_not_promoted(desk: Desk):
    record = desk.logged(0)
    (desk.artifact(record) / "reference.safetensors").unlink()
    outcome = desk.submit(record)
    assert [check["passed"] for check in outcome.checks] == [True, True, False]
    assert "reference.safetensors: no such file; export the model again" in outcome.sentence


def test_another_model_under_the_same_name_is_noticed(desk: Desk):
    """The record of one trial with the artifact of the other: even its size differs."""
    one, other = desk.logged(0), desk.logged(1)
    swapped = replace(one, model_uri=other.model_uri)
    outcome = desk.submit(swapped)
    assert not outcome.promoted
    assert not outcome.checks[1]["passed"]
    assert f"{other.size.num_parameters}, recorded {one.size.num_parameters}" in outcome.sentence


def test_a_damaged_artifact_is_an_error_and_moves_nothing(desk: Desk):
    record = desk.logged(0)
    path = desk.artifact(record) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ExportError, match="SHA-256"):
        desk.submit(record)
    assert desk.aliases() == ["1", None, None]


def test_a_figure_that_is_not_finite_neither_passes_nor_breaks_the_record(desk: Desk):
    record = desk.logged(0)
    name = record.metric.name

    def broken(*_: Any) -> Evidence:
        found = evaluate_artifact(record.export, desk.family.task, str(desk.family.data.folder))
        return replace(found, test=found.test | {name: math.nan})

    outcome = register_and_promote(desk.case(record), desk.registry, broken)
    assert not outcome.promoted
    json.dumps(outcome.reproduced, allow_nan=False)


def test_the_name_of_a_model_follows_the_spec(lm: Family):
    spec = CampaignSpec.model_validate(
        {
            "name": "campaign",
            "tasks": [lm.task.model_dump()],
            "search": {"density": [0.5]},
            "promote": {"model": "shop-{task}-of-{campaign}"},
        }
    )
    assert registered_name(spec, "lm") == "shop-lm-of-campaign"


def test_each_gate_fails_with_its_message(desk: Desk):
    """Quality, speed, size, license, and the artifact's own answers under load."""
    record = desk.logged(0)
    outcome = desk.submit(
        record,
        "quality_drop <= -90%",
        "speedup >= 1.2 @ batch 32",
        "bytes <= 1 kB",
        require_license=True,
    )
    name = f"campaign-{desk.family.task.name}"
    failed = [check for check in outcome.checks if not check["passed"]]
    assert [check["rule"] for check in failed] == [
        "the model states its license",
        "quality_drop <= -90%",
        "speedup >= 1.2 @ batch 32",
        "bytes <= 1 kB",
    ]
    assert failed[0]["value"] == "none"
    assert outcome.sentence.startswith(
        f"{name} version 1 stays candidate: the model states its license must hold, got none; "
    )
    assert desk.aliases() == ["1", None, None]
    (event,) = desk.registry.trail(name)
    assert (event.action, event.version, event.why) == ("refuse", "1", outcome.sentence)
    desk.submit(record, "bytes <= 1 kB", require_license=True, license="apache-2.0")
    assert len(desk.registry.trail(name)) == 2
    assert desk.registry.tags(name, "1")["license"] == "apache-2.0"


def test_what_passes_waits_where_a_person_must_approve(desk: Desk):
    record = desk.logged(0)
    outcome = desk.submit(record, approval=True)
    name = f"campaign-{desk.family.task.name}"
    assert not outcome.promoted
    assert outcome.sentence == (
        f"{name} version 1 waits for approval: all 3 checks passed; a person says "
        f"`lowrank promote SPEC --task {desk.family.task.name}`"
    )
    assert desk.submit(record, approval=True).sentence == outcome.sentence
    assert desk.aliases() == ["1", None, None]
    assert [event.action for event in desk.registry.trail(name)] == ["wait"]

    case = desk.case(record, approval=True)
    approved = promote_version(case, name, "1", desk.registry, here, approved=True)
    assert approved.promoted
    assert desk.aliases() == ["1", "1", None]
    # the same campaign again does not ask again for what a person has approved
    assert desk.submit(record, approval=True).promoted
    assert [event.action for event in desk.registry.trail(name)] == ["wait", "promote"]


@pytest.mark.slow
def test_the_load_test_asks_the_artifact_itself(desk: Desk):
    record = desk.logged(0)
    outcome = desk.submit(record, load_test=6)
    (check,) = (c for c in outcome.checks if "load test" in c["rule"])
    assert check["passed"], check
    assert check["value"].startswith("6 requests, median ")
    # its code, as it was logged, no longer works
    code = desk.artifact(record).parents[1] / "code" / "lowrank" / "hf.py"
    code.write_text("raise ImportError('no such thing')")
    outcome = desk.submit(record, load_test=6)
    (check,) = (c for c in outcome.checks if "load test" in c["rule"])
    assert not check["passed"]
    assert "the load test ended with 1: ImportError: no such thing" in outcome.sentence


def test_the_card_of_a_version(desk: Desk):
    record = desk.logged(0)
    outcome = desk.submit(record, "density <= 50%", license="apache-2.0")
    name = f"campaign-{desk.family.task.name}"
    card = desk.registry.client.get_model_version(name, "1").description
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers"
    (result,) = front["model-index"][0]["results"]
    found = {each["type"]: each["value"] for each in result["metrics"]}
    assert found == pytest.approx(record.test, abs=1e-6)
    assert f"| parameters | {count(desk.family.dense.size.num_parameters)} | " in card
    for check in outcome.checks:
        assert f"- passed: {check['rule']} ({check['value']})" in card
    assert f"| data_hash | `{desk.family.data.content_hash}` |" in card
    assert f"| dense.key | `{desk.family.dense.key}` |" in card
