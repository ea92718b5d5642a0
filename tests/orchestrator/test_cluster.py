"""What processes of a cluster are started with; sessions are tested with a real one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from orchestrator.cluster import ENVIRONMENT, _for_workers, set_environment


def test_what_the_person_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    set_environment()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert set(ENVIRONMENT) <= set(os.environ)


def test_workers_have_the_address_and_what_the_person_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    variables = _for_workers("10.0.0.1:6379")
    assert variables["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert variables["TOKENIZERS_PARALLELISM"] == "true"
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    for elsewhere in ("auto", "ray://head:10001"):
        assert "RAY_ADDRESS" not in _for_workers(elsewhere)


def test_a_ray_that_does_not_start_is_told_of_in_words():
    code = "from orchestrator import cluster\nwith cluster.ray_session(): pass"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        | {"RAY_TMPDIR": "/proc/nowhere"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert "ClusterError: Ray did not start on this machine: " in done.stderr
    assert "/proc/nowhere" in done.stderr.splitlines()[-1]
