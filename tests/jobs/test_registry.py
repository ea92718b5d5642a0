"""What `report` and the commands of the registry do after a campaign. One is laid out by hand: two
registered models of one task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.campaign_records import CampaignResult, Choice
from orchestrator.layout import Layout
from orchestrator.promotion import registered_name
from orchestrator.registry import CHAMPION, Registry
from orchestrator.registry.audit import USER_ENV
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec, load_spec
from orchestrator.tracking import RunWriter, Tracking
from tests.jobs.command import Lowrank, refused
from tests.orchestrator.record_factory import make_campaign, make_task_result
from tests.orchestrator.small import Family

NAME = "campaign-lm"


@pytest.fixture
def finished(store: str, tmp_path: Path, lm: Family) -> Path:
    path = tmp_path / "spec.yaml"
    family_spec = {
        "name": "campaign",
        "storage": str(tmp_path),
        "tasks": [lm.task.model_dump()],
        "search": {"density": [0.5, 0.25]},
        "promote": {"gates": ["density <= 30%"]},
    }
    path.write_text(dump_spec(CampaignSpec.model_validate(family_spec)))
    spec = load_spec(path)
    layout = Layout(tmp_path, "campaign")
    layout.create()
    tracking = Tracking(store, "campaign", layout.artifacts)
    registry = Registry(store)
    name = registered_name(spec, lm.task.name)
    trials = []
    for record in lm.trials:
        run = tracking.model_run(record.key, "p", record.key, {}, {})
        uri = RunWriter(store, run).model(record, lm.task.kind)
        trials.append(replace(record, mlflow_run_id=run, model_uri=uri))
        registry.set_candidate(name, registry.register(name, trials[-1], {}))
    choice = Choice(key=trials[1].key, sentence="the smaller one", front=[trials[1].key], passed=[])
    result = make_task_result(
        trials, lm.dense, choice, "language-modelling", promotion=None, failed=[]
    )
    make_campaign([result], name="campaign").save(layout.result)
    return path


def test_report(lowrank: Lowrank, finished: Path):
    result = lowrank("report", finished)
    assert result.exit_code == 0
    assert "the smaller one" in result.stdout
    report = finished.parent / "campaign" / "report.html"
    assert result.stdout.splitlines()[-1] == f"report   {report}"
    assert report.read_text().startswith("<!")


def test_the_candidate_becomes_champion_and_goes_back(lowrank: Lowrank, finished: Path, store: str):
    name = NAME
    result = lowrank("promote", finished)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["pass"] * 4
    assert lines[-1] == f"{name} version 2 is champion: all 4 checks passed"

    result = lowrank("promote", finished, "--version", "1")
    assert result.exit_code == 1, "50 % is more than the gate allows"
    assert "FAIL  density <= 30%" in result.stdout
    assert "stays candidate: density <= 30% must hold, got " in result.stdout
    assert Registry(store).version(name, CHAMPION) == "2"
    assert "'previous'" in refused(lowrank("rollback", finished), 1)

    shown = refused(lowrank("promote", finished, "--version", "1", "--skip-gates"), 1)
    assert shown == "--skip-gates needs --why: the audit trail keeps the reason"
    words = ("--version", "1", "--skip-gates", "--why", "the customer asked")
    result = lowrank("promote", finished, *words)
    assert result.exit_code == 0
    assert "version 2 is kept as previous" in result.stdout
    result = lowrank("rollback", finished)
    assert result.stdout == f"{name}: version 2 is champion again, version 1 is previous\n"
    assert Registry(store).version(name, CHAMPION) == "2"


def test_versions_of_nobody(lowrank: Lowrank, finished: Path):
    shown = refused(lowrank("promote", finished, "--version", "7"), 1)
    assert shown.startswith("no version 7 of model 'campaign-lm' in sqlite:///")


def test_a_version_of_another_result(lowrank: Lowrank, finished: Path):
    path = finished.parent / "campaign" / "result.json"
    result = CampaignResult.load(path)
    task = replace(result.tasks[0], trials=result.tasks[0].trials[:1])
    replace(result, tasks=[task]).save(path)
    shown = refused(lowrank("promote", finished), 1)
    assert "version 2 of 'campaign-lm'" in shown
    assert "is not of this campaign's last result" in shown


def test_a_damaged_artifact_in_a_sentence(lowrank: Lowrank, finished: Path):
    for path in (finished.parent / "mlflow-artifacts").rglob("lowrank.json"):
        manifest = json.loads(path.read_text()) | {"weights_sha256": "0" * 64}
        path.write_text(json.dumps(manifest))
    assert "SHA-256 is" in refused(lowrank("promote", finished), 1)


def test_a_dry_run_shows_the_difference_and_moves_nothing(
    lowrank: Lowrank, finished: Path, store: str
):
    registry = Registry(store)
    result = lowrank("promote", finished, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "there is no champion yet" in result.stdout
    assert result.stdout.endswith("version 2 would pass all 4 checks; nothing was moved\n")
    assert (registry.version(NAME, CHAMPION), registry.trail(NAME)) == (None, [])

    registry.promote(NAME, "2")
    assert "this is today's champion" in lowrank("promote", finished, "--dry-run").stdout
    before = registry.tags(NAME, "1")
    result = lowrank("promote", finished, "--version", "1", "--dry-run")
    assert result.exit_code == 1
    assert "FAIL  density <= 30%" in result.stdout
    assert "version 1 would fail 1 of 4 checks; nothing was moved" in result.stdout
    (row,) = (line for line in result.stdout.splitlines() if "num_parameters" in line)
    one, two = (registry.tags(NAME, version)["num_parameters"] for version in "12")
    assert row.index(two) < row.index(one), "the champion's comes first"
    assert registry.version(NAME, CHAMPION) == "2"
    assert registry.tags(NAME, "1") == before


def test_the_audit_says_who_and_why(
    lowrank: Lowrank, finished: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(USER_ENV, "release-bot")
    lowrank("promote", finished, "--why", "first of its kind")
    lowrank("promote", finished, "--version", "1")
    monkeypatch.setenv(USER_ENV, "ada")
    lowrank("promote", finished, "--version", "1", "--skip-gates", "--why", "the customer asked")
    lowrank("rollback", finished, "--why", "slower than it looked")
    result = lowrank("audit", finished)
    assert result.exit_code == 0, result.stderr
    words = " ".join(result.stdout.split())
    for piece in ("release-bot", "ada", "first of its kind", "the customer asked", "refuse"):
        assert piece in words
    last = f"{NAME}: champion is version 2, previous is version 1, candidate is version 2"
    assert result.stdout.splitlines()[-1] == last


def test_a_copy_passes_the_gates_again_and_is_made_once(
    lowrank: Lowrank, finished: Path, store: str
):
    registry = Registry(store)
    shown = refused(lowrank("copy", finished, "--to", "shop"), 1)
    assert shown == f"model '{NAME}' has no champion to copy: lowrank promote {finished}"
    assert "--to must be another model" in refused(lowrank("copy", finished, "--to", NAME), 1)

    registry.promote(NAME, "2")
    for _ in range(2):
        result = lowrank("copy", finished, "--to", "shop")
        assert result.exit_code == 0, result.stderr
        assert f"shop version 1 is {NAME} version 2" in result.stdout
        assert result.stdout.endswith("shop version 1 is champion: all 4 checks passed\n")
    assert registry.version("shop", CHAMPION) == "1"
    assert (
        registry.tags("shop", "1")["weights_sha256"] == (registry.tags(NAME, "2")["weights_sha256"])
    )
    assert [event.action for event in registry.trail("shop")] == ["copy", "promote"]

    result = lowrank("copy", finished, "--to", "shop", "--version", "1")
    assert result.exit_code == 1
    assert "shop version 2 stays candidate: density <= 30% must hold" in result.stdout
    assert registry.version("shop", CHAMPION) == "1"
