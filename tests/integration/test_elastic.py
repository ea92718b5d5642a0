"""A training that begins with the one machine that is there, and goes on with two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.job import Job
from orchestrator.layout import Layout
from orchestrator.records import ModelRecord
from orchestrator.tracking import Tracking, default_tracking_uri
from orchestrator.tracking.reading import RunReader
from tests.integration.conftest import compression, environment
from tests.orchestrator.small import one_core, train_to

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

ON_A_CLUSTER = """
import json, os, socket, sys, threading, time
from pathlib import Path
from orchestrator import cluster as campaigns, machines, train_run
from orchestrator.launch import Launch
campaigns.set_environment()
import ray
from ray.cluster_utils import Cluster

config = json.loads(sys.argv[1])
log = config["log"]

def work(given):
    import time
    from pathlib import Path
    from orchestrator import resume
    from orchestrator.steps import Steps
    from orchestrator.train_run import worker

    resume.INTERVAL_S = resume.BETWEEN_S = 1e9  # no other state than that of the notice
    take = Steps.take

    def logged(steps, step):
        group = steps._workers
        if group.rank == 0:
            with Path(log).open("a") as file:
                file.write(f"{steps._stretch.first_step + step},{group.world} ")
        if group.world == 1:
            time.sleep(0.4)  # there is to be something left when the second machine comes
        return take(steps, step)

    Steps.take = logged
    return worker(given)

train_run.worker = work
with socket.socket() as probe:
    probe.bind(("", 0))
    port = probe.getsockname()[1]
head = {"num_cpus": 0, "resources": {"driver": 4}, "dashboard_port": port}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(num_cpus=1, labels={"group": "old"})
ray.init(address=cluster.address, log_to_driver=False)
launch = Launch(**config["launch"])
results = []
thread = threading.Thread(target=lambda: results.append(train_run.train_on_workers(launch, [])))
thread.start()
while not Path(log).exists():
    assert thread.is_alive()
    time.sleep(0.2)
# not from a thread: Ray's processes die with the thread that started them
new = cluster.add_node(num_cpus=1, labels={"group": "new"})
thread.join(300)
(record,) = results

# what a group of machines is asked for by its label
where = lambda: ray.get_runtime_context().get_node_id()
assert machines.run_alone(where, labels={"group": "new"}) == new.node_id
assert machines.available({"group": "!old"})["CPU"] == 1
found = {each.labels.get("group"): each.amounts for each in machines.groups(["group"])}
assert found == {g: {"CPU": n, "GPU": 0} for g, n in ((None, 0), ("old", 1), ("new", 1))}, found
try:
    machines.run_alone(where, labels={"group": "other"})
except Exception as error:
    assert "no node of the cluster with group: other" in str(error), error
else:
    raise AssertionError("there is no such group")
ray.shutdown()
cluster.shutdown()
# Ray's own exit handlers stumble over nodes that are gone
os._exit(0)
"""


def test_a_training_takes_the_machines_that_come(tmp_path: Path) -> None:
    job = compression(tmp_path, evaluate_every=10**6, steps=240)
    layout = Layout(tmp_path / "runs", "tiny")
    layout.create()
    uri = default_tracking_uri(str(layout.storage))
    run = Tracking(uri, "tiny", layout.artifacts).model_run("small", "parent", "small", {}, {})
    launch = {
        "job": job | {"snapshots": str(layout.snapshots("small"))},
        "storage": str(layout.storage),
        "campaign": "tiny",
        "resources": {"workers": 2, "min_workers": 1, "resize_minutes": 0.02},
        "tracking_uri": uri,
        "run_id": run,
        "metric": "bits_per_character",
    }
    log = tmp_path / "steps.txt"
    done = subprocess.run(
        [sys.executable, "-c", ON_A_CLUSTER, json.dumps({"launch": launch, "log": str(log)})],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [tuple(map(int, each.split(","))) for each in log.read_text().split()]
    worlds = [world for _, world in steps]
    resized = worlds.index(2)
    assert worlds == [1] * resized + [2] * (len(steps) - resized)
    # notice is given first: what is done again are the steps after the state that it brought
    first_again = steps[resized][0]
    assert 0 < first_again <= steps[resized - 1][0] + 1
    assert steps[resized - 1][0] + 1 - first_again <= 15, "5 s of looking, at 0.4 s a step"
    record = ModelRecord.load(layout.record("small"))
    assert record.worlds == [(0, 1), (first_again, 2)]
    assert record.workers == 2
    assert RunReader(uri, "tiny").runs()
    with one_core():
        undisturbed = train_to(tmp_path / "undisturbed", Job(**job))
    assert undisturbed.worlds == []
    # batches are the same and there is no dropout: what differs is how sums are rounded
    assert record.quality == pytest.approx(undisturbed.quality, rel=0.02)
