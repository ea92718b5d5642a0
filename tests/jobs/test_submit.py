"""What is refused before a cluster is asked; the rest has one, in tests/integration."""

from __future__ import annotations

import re
from inspect import signature
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.job_app import job, submit
from orchestrator.job_server import JobServer
from tests.jobs.specs import line_of, write_spec

ROOT = Path(__file__).parents[2]
NOBODY = ("--address", "http://127.0.0.1:1")


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    return write_spec(tmp_path)


def lowrank(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


COMMANDS = [("submit",), *(("job", command) for command in ("status", "logs", "stop"))]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_invalid_spec_is_explained_first(command: tuple[str, ...], tmp_path: Path):
    path = write_spec(tmp_path, "density: [0.5, 0.25]", "density: [1.5]")
    result = lowrank(*command, path, *NOBODY)
    assert result.exit_code == 2
    assert f"{path}:{line_of(path, 'density: [1.5]')}: search.density" in result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_cluster_must_be_named_and_answer(command: tuple[str, ...], spec: Path):
    result = lowrank(*command, spec)
    assert result.exit_code == 1
    assert "--address is needed, or RAY_API_SERVER_ADDRESS" in result.stderr
    result = lowrank(*command, spec, *NOBODY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error the job server at http://127.0.0.1:1 does not answer")


def test_the_address_may_come_from_the_environment(spec: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    assert "http://127.0.0.1:2 does not answer" in lowrank("submit", spec).stderr
    assert "http://127.0.0.1:1 does not answer" in lowrank("submit", spec, *NOBODY).stderr


def test_a_password_goes_nowhere(spec: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(JobServer, "__init__", lambda *_: pytest.fail("a server was asked"))
    result = lowrank("submit", spec, "--set", "tracking.uri=http://me:hunter2@mlflow", *NOBODY)
    assert result.exit_code == 2
    assert "hunter2" not in result.output
    assert "environment of the cluster's nodes, got http://***@mlflow" in result.stderr


def test_a_relative_folder_is_not_sent(spec: Path):
    result = lowrank("submit", spec, "--set", "storage=runs", *NOBODY)
    assert result.exit_code == 2
    assert "storage: must be an absolute path, the same on every node" in result.stderr


def test_the_guide_names_commands_that_there_are():
    guide = (ROOT / "docs" / "cluster.md").read_text()
    commands = {each.callback.__name__ for each in app.registered_commands} | {"job"}
    assert set(re.findall(r"`lowrank ([a-z]+)", guide)) <= commands
    named = set(re.findall(r"`lowrank job ([a-z]+)", guide))
    assert named == {each.callback.__name__ for each in job.registered_commands}


def test_messages_that_the_guide_explains_are_those_of_the_code():
    guide = (ROOT / "docs" / "cluster.md").read_text()
    table = guide[guide.index("## 8. ") : guide.index("## Without")]
    code = "".join(
        " ".join(re.sub(r'"\s+f?"', "", path.read_text()).split())
        for folder in ("orchestrator", "jobs")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    quoted = re.findall(r"(?m)^\| `([^`]+)`", table)
    assert len(quoted) == 12
    for message in quoted:
        parts = re.split(r"\d+ (?:driver|GPU)|, the cluster has \d+", message)
        for part in parts:
            assert part.strip() in code, message


def test_options_of_run_go_along():
    """Those that there are: the command that a job is given must exist."""
    (run,) = [each for each in app.registered_commands if each.callback.__name__ == "run"]
    ours = set(signature(submit).parameters) - {"address", "follow"}
    assert ours == set(signature(run.callback).parameters)
