"""`make test` shares the tests of a file, and those that start a cluster, with nobody."""

from __future__ import annotations

import os

import pytest


def test_the_group_of_a_file_reaches_the_scheduler(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process runs all tests")
    # xdist sends a group's tests to one process by what stands behind the @ of their names; a
    # pytest that it cannot rename tests of would run two clusters side by side, and say nothing
    assert request.node.nodeid.endswith(f"@{request.path}")
