"""How several processes share the tests (`make test`: pytest-xdist), and what all of them need."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no failure
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays together, for its fixtures. So do tests that start a cluster, for one cluster
    fills the machine; they come first, for they take longest (and xdist is told to keep to that,
    by --no-loadscope-reorder)."""
    for item in items:
        group = "ray" if _starts_cluster(item) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: not _starts_cluster(item))


def _starts_cluster(item: pytest.Item) -> bool:
    return item.get_closest_marker("ray") is not None
