"""Help comes at once and lists everything."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.job_app import job

COMMANDS = ["validate", "plan", "run", "status", "submit", "report", "results", "promote"]
COMMANDS += ["rollback", "copy", "audit", "compress", "bench", "export", "ui"]
JOB_COMMANDS = ["status", "logs", "stop"]
WITHOUT_SPEC = ["bench", "export"]
HEAVY = {"torch", "ray", "mlflow", "transformers", "pydantic", "numpy", "orchestrator", "lowrank"}

HELP = """
import sys
from jobs.__main__ import main
try:
    main()
finally:
    print(*{name.split(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HELP, *words], capture_output=True, text=True, check=False
    )


def test_help_lists_every_command_and_imports_nothing_heavy():
    result = run("--help")
    assert result.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in result.stdout
    assert HEAVY.isdisjoint(result.stderr.split())


def test_help_of_a_command_imports_nothing_heavy():
    result = run("compress", "--help")
    assert result.returncode == 0
    assert "--density" in result.stdout
    # typer reads the types of options with pydantic
    assert (HEAVY - {"pydantic"}).isdisjoint(result.stderr.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert ("SPEC" in result.output) == (command not in WITHOUT_SPEC)
    assert ("--set" in result.output) == (command not in WITHOUT_SPEC)
    described = app.registered_commands[COMMANDS.index(command)].callback.__doc__
    assert described.splitlines()[0].rstrip(".")[:40] in result.output


def test_these_are_all_commands():
    assert [command.callback.__name__ for command in app.registered_commands] == COMMANDS


def test_job_explains_itself_and_its_commands():
    assert [command.callback.__name__ for command in job.registered_commands] == JOB_COMMANDS
    whole = CliRunner().invoke(app, ["job", "--help"])
    for command in JOB_COMMANDS:
        assert f" {command} " in whole.output
        result = CliRunner().invoke(app, ["job", command, "--help"])
        assert result.exit_code == 0
        assert all(option in result.output for option in ("SPEC", "--set", "--address"))


def test_help_of_a_command_for_a_cluster_imports_nothing_heavy():
    result = run("submit", "--help")
    assert result.returncode == 0
    assert (HEAVY - {"pydantic"}).isdisjoint(result.stderr.split())


def test_versions_are_shown_without_importing_what_they_are_of():
    result = run("--version")
    assert result.returncode == 0
    lines = dict(line.split() for line in result.stdout.splitlines())
    assert lines["lowrank-orchestrator"] == version("lowrank-orchestrator")
    assert lines["torch"] == version("torch")
    assert HEAVY.isdisjoint(result.stderr.split())


def test_nothing_asked_shows_the_help():
    result = CliRunner().invoke(app, [])
    assert all(command in result.output for command in COMMANDS)


def test_an_unknown_option_is_the_persons_mistake(tmp_path: Path):
    assert CliRunner().invoke(app, ["validate", str(tmp_path), "--nothing"]).exit_code == 2
