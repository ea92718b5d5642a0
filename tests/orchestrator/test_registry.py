"""Aliases in a real registry: who is candidate, champion, previous, and how they move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.errors import RegistryError
from orchestrator.records import ModelRecord
from orchestrator.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry
from orchestrator.spec_after import PromoteSpec
from orchestrator.tracking import RunWriter, Tracking
from tests.orchestrator.record_factory import make_speed
from tests.orchestrator.small import Family

NAME = "campaign-lm"


@pytest.fixture
def logged(store: str, tmp_path: Path, lm: Family) -> list[ModelRecord]:
    """The two compressed models with their runs."""
    tracking = Tracking(store, "campaign", tmp_path / "artifacts")
    records = []
    for record in lm.trials:
        run = tracking.model_run(record.key, "p", record.key, {}, {})
        uri = RunWriter(store, run).model(record, lm.task.kind)
        records.append(replace(record, mlflow_run_id=run, model_uri=uri))
    return records


@pytest.fixture
def registry(store: str) -> Registry:
    return Registry(store)


def aliases(registry: Registry) -> tuple[str | None, str | None]:
    return registry.version(NAME, CHAMPION), registry.version(NAME, PREVIOUS)


def test_registering_twice_makes_one_version(registry: Registry, logged: list[ModelRecord]):
    first, second = (registry.register(NAME, record, {}) for record in logged)
    assert (first, second) == ("1", "2")
    assert registry.register(NAME, logged[0], {"why": "again"}) == first
    assert registry.tags(NAME, first)["why"] == "again"
    assert len(registry.client.search_model_versions(f"name = '{NAME}'")) == 2


def test_a_version_says_what_it_is(registry: Registry, logged: list[ModelRecord]):
    record = replace(logged[0], speed=[make_speed(32, 1.5, 80.0)])
    version = registry.register(NAME, record, {"campaign": "c"})
    found = registry.client.get_model_version(NAME, version)
    assert found.run_id == record.mlflow_run_id
    tags = registry.tags(NAME, version)
    assert tags["lowrank.key"] == record.key
    assert tags["weights_sha256"] == record.export_sha256
    assert tags["num_parameters"] == str(record.size.num_parameters)
    assert float(tags["test.bits_per_character"]) == record.test["bits_per_character"]
    assert float(tags["density.prunable"]) == pytest.approx(record.densities.prunable, abs=1e-6)
    assert (tags["speedup.b32"], tags["campaign"]) == ("1.500", "c")


def test_a_trial_without_a_logged_model(registry: Registry, lm: Family):
    with pytest.raises(RegistryError, match=f"trial {lm.trials[0].key} has no logged model"):
        registry.register(NAME, lm.trials[0], {})


def test_aliases_move(registry: Registry, logged: list[ModelRecord]):
    one, two = (registry.register(NAME, record, {}) for record in logged)
    registry.set_candidate(NAME, one)
    assert registry.version(NAME, CANDIDATE) == one
    assert aliases(registry) == (None, None)
    assert registry.promote(NAME, one, {"gate.0": "pass"}) is None
    assert registry.tags(NAME, one)["gate.0"] == "pass"
    assert aliases(registry) == (one, None)
    assert registry.promote(NAME, two) == one
    assert aliases(registry) == (two, one)
    registry.set_candidate(NAME, two)
    assert registry.version(NAME, CANDIDATE) == two


def test_promoting_the_champion_again_forgets_nothing(
    registry: Registry, logged: list[ModelRecord]
):
    one, two = (registry.register(NAME, record, {}) for record in logged)
    registry.promote(NAME, one)
    registry.promote(NAME, two)
    for _ in range(2):
        assert registry.promote(NAME, two) is None
        assert aliases(registry) == (two, one)


def test_a_rollback_swaps_and_can_be_undone(registry: Registry, logged: list[ModelRecord]):
    one, two = (registry.register(NAME, record, {}) for record in logged)
    registry.promote(NAME, one)
    registry.promote(NAME, two)
    assert registry.rollback(NAME) == (one, two)
    assert aliases(registry) == (one, two)
    assert registry.rollback(NAME) == (two, one)
    assert aliases(registry) == (two, one)


def test_nothing_to_go_back_to(registry: Registry, logged: list[ModelRecord]):
    with pytest.raises(RegistryError, match=f"'{NAME}' has no version with the alias 'champion'"):
        registry.rollback(NAME)
    registry.promote(NAME, registry.register(NAME, logged[0], {}))
    with pytest.raises(RegistryError, match="the alias 'previous': nothing to go back to"):
        registry.rollback(NAME)
    assert aliases(registry) == ("1", None)


def test_a_download_is_the_export(registry: Registry, logged: list[ModelRecord], tmp_path: Path):
    version = registry.register(NAME, logged[1], {})
    (tmp_path / "fetched").mkdir()
    root, folder = registry.download(NAME, version, tmp_path / "fetched")
    assert folder.is_relative_to(root)
    assert root.is_relative_to(tmp_path / "fetched")
    assert (root / "MLmodel").exists()
    exported = Path(logged[1].export)
    for path in exported.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(exported)).read_bytes() == path.read_bytes()


def test_unknown_versions_and_models(registry: Registry, logged: list[ModelRecord]):
    registry.register(NAME, logged[0], {})
    assert registry.version("never-seen", CHAMPION) is None
    for version in ("7", "latest"):
        with pytest.raises(RegistryError, match=f"no version {version} of model '{NAME}'"):
            registry.tags(NAME, version)


def test_a_registry_that_does_not_answer_is_not_an_empty_one(
    store: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = Registry("http://user:secret@127.0.0.1:9", store)
    with pytest.raises(RegistryError) as caught:
        registry.version(NAME, CHAMPION)
    assert "http://***@127.0.0.1:9 does not answer" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["{campaign}/{task}", "a:{task}", "it's-{task}"])
def test_names_that_mlflow_refuses_are_refused_in_the_spec(name: str):
    """Otherwise the campaign would find out after all its training."""
    with pytest.raises(ValidationError, match="MLflow's model names hold no"):
        PromoteSpec(model=name)
