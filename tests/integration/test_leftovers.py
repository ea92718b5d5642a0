"""Machines that a job took by a detached placement group are free again when it is over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import environment

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ON_A_CLUSTER = """
import os, signal, sys
from pathlib import Path
from orchestrator.cluster import _head, ray_session, set_environment
from orchestrator.leftovers import remember, remembered
set_environment()
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group

note, head = Path(sys.argv[1]), {"num_cpus": 2, "include_dashboard": True, "dashboard_port": 0}
cluster = Cluster(initialize_head=True, head_node_args=head)
os.environ["RAY_ADDRESS"] = cluster.address
on_terminate = signal.getsignal(signal.SIGTERM)

def take():
    ray.get(placement_group([{"CPU": 2}], lifetime="detached").ready())
    return ray.get_runtime_context().get_job_id()

# ended in order: by the session itself
with ray_session(note):
    first = take()
    assert remembered(note, _head()) == first
    assert remembered(note, "another cluster") is None
assert not note.exists()
# whoever has runs to close afterwards still hears of SIGTERM, and Ray does not take it
assert signal.getsignal(signal.SIGTERM) is on_terminate
# killed: by the next session, from what was written down
ray.init(address=cluster.address, log_to_driver=False)
head = _head()
remember(note, take(), head)
ray.shutdown()
with ray_session(note) as there:
    assert there["CPU"] == 2
    assert ray.available_resources().get("CPU") == 2, ray.available_resources()
    assert ray.get_runtime_context().get_job_id() != first
    take()
# nobody else's: a job of this number on a cluster of before
ray.init(address=cluster.address, log_to_driver=False)
assert ray.available_resources().get("CPU") == 2
remember(note, take(), "another cluster")
ray.shutdown()
with ray_session(note):
    assert "CPU" not in ray.available_resources()
cluster.shutdown()
os._exit(0)
"""


def test_what_a_job_left_taken_is_freed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_CLUSTER, str(tmp_path / "ray-job.json")],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
