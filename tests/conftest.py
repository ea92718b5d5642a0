"""How several processes share the tests (`make test`: pytest-xdist), and what all of them need."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no failure
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


SHARED_CAMPAIGN = "campaign"
"""The fixture that runs one for several files."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays together, for its fixtures. So do tests that start a cluster, in two groups: the
    files that look at the same campaign, and the others. A cluster waits more than it works, so
    one beside another costs little. They come first, for they take longest (and xdist is told to
    keep to that, by --no-loadscope-reorder)."""
    sharing = {item.path for item in items if SHARED_CAMPAIGN in getattr(item, "fixturenames", ())}
    for item in items:
        group = str(item.path)
        if _starts_cluster(item):
            group = "ray, one campaign" if item.path in sharing else "ray"
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: not _starts_cluster(item))


def _starts_cluster(item: pytest.Item) -> bool:
    return item.get_closest_marker("ray") is not None
