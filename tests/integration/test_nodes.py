"""Nodes come late, one is taken away with notice, and the training moves to another one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.job import Job
from orchestrator.snapshot import SnapshotStore
from tests.integration.conftest import compression, environment, same_weights
from tests.orchestrator.small import one_core, train_to

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

ON_A_CLUSTER = """
import json, os, subprocess, sys, threading, time
from pathlib import Path

os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "1"
from orchestrator.cluster import set_environment
from orchestrator.machines import wait_to_fit
from orchestrator.drain import notice
from orchestrator.errors import CampaignError
from orchestrator.spec import Resources
set_environment()
import ray
from ray.cluster_utils import Cluster
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

config = json.loads(sys.argv[1])

def work(config):
    import time
    from pathlib import Path
    import ray
    from orchestrator import resume
    from orchestrator.job import Job
    from orchestrator.steps import Steps
    from orchestrator.train_loop import run_job
    from orchestrator.workers import RayWorkers

    resume.INTERVAL_S = resume.BETWEEN_S = 1e9  # no other state than that of the notice
    resume.LOOK_EVERY_S = 1.0
    take, log = Steps.take, Path(config["log"])
    first = not log.exists()
    with Path(config["nodes"]).open("a") as file:
        file.write(ray.get_runtime_context().get_node_id() + " ")

    def logged(steps, step):
        with log.open("a") as file:
            file.write(f"{step} ")
        if first:
            time.sleep(0.2)  # the node is to be there for its notice
        return take(steps, step)

    Steps.take = logged
    run_job(Job(**config["job"]), RayWorkers())

head = {"num_cpus": 0, "resources": {"driver": 4}}
cluster = Cluster(initialize_head=True, head_node_args=head)
ray.init(address=cluster.address, log_to_driver=False)

# nothing fits at first, and what comes later is waited for
os.environ["RAY_ADDRESS"] = cluster.address
said = []
waiting = threading.Thread(target=wait_to_fit, args=(Resources(), "small", said.append))
waiting.start()
while not said:
    time.sleep(0.1)
# not from the thread: Ray's processes die with the thread that started them
both = [cluster.add_node(num_cpus=1) for _ in range(2)]
waiting.join(60)
assert not waiting.is_alive()
assert wait_to_fit(Resources(), "small", said.append)["CPU"] == 2
assert "needs 1 CPU, the cluster has 0" in said[0] and "15 minutes" in said[0], said
try:
    wait_to_fit(Resources(workers=9, wait_minutes=0), "small", said.append)
except CampaignError as error:
    assert "needs 9 CPU, the cluster has 2" in str(error), error
else:
    raise AssertionError("nine workers fit nowhere")

def take_away():
    log, states = Path(config["log"]), Path(config["job"]["snapshots"])
    while not log.exists() or len(log.read_text().split()) < 10:
        time.sleep(0.1)
    name = Path(config["nodes"]).read_text().strip()
    (taken,) = [node for node in both if node.node_id == name]
    subprocess.run(notice(cluster.address, name, 120), check=True)
    while not any(path.name.isdigit() for path in states.glob("*")):
        time.sleep(0.1)
    cluster.remove_node(taken, allow_graceful=False)

thread = threading.Thread(target=take_away, daemon=True)
thread.start()
result = TorchTrainer(
    work, train_loop_config=config,
    scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
    run_config=RunConfig(
        name="taken", storage_path=config["storage"],
        # a machine that is taken away is not a failure
        failure_config=FailureConfig(max_failures=0, controller_failure_limit=1)),
).fit()
thread.join(30)
result.checkpoint.to_directory(config["export"])
ray.shutdown()
cluster.shutdown()
# Ray's own exit handlers stumble over a node that was killed
os._exit(0)
"""


def test_a_node_that_is_taken_away_with_notice_costs_seconds(tmp_path: Path) -> None:
    job = compression(tmp_path, evaluate_every=10**6, steps=300)
    states = tmp_path / "states"
    config = {
        "job": job | {"snapshots": str(states)},
        "log": str(tmp_path / "steps.txt"),
        "nodes": str(tmp_path / "nodes.txt"),
        "storage": str(tmp_path / "ray"),
        "export": str(tmp_path / "export"),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_A_CLUSTER, json.dumps(config)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(set((tmp_path / "nodes.txt").read_text().split())) == 2
    steps = [int(step) for step in (tmp_path / "steps.txt").read_text().split()]
    again = next(i for i in range(1, len(steps)) if steps[i] != steps[i - 1] + 1)
    # it goes on from the state of the notice, and nothing before that is done again
    assert 0 < steps[again] <= steps[again - 1]
    (last, *_) = SnapshotStore(states).steps()
    assert last == steps[again]
    with one_core():  # as a worker of one CPU has: sums over threads differ in the last bit
        undisturbed = train_to(tmp_path / "undisturbed", Job(**job))
    assert same_weights(Path(undisturbed.export), tmp_path / "export")
