"""A worker is killed in the middle of a training: Ray starts the group again, which goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import compression, environment, same_weights

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ON_TWO_WORKERS = """
import json, sys
from orchestrator.cluster import ray_session
with ray_session():
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def work(config):
        import os, signal
        from pathlib import Path
        from orchestrator import resume
        from orchestrator.job import Job
        from orchestrator.train_loop import run_job
        from orchestrator.workers import RayWorkers

        resume.INTERVAL_S = resume.LEAST_APART = 0

        class Mortal(RayWorkers):
            def report(self, progress, checkpoint=None):
                super().report(progress, checkpoint)
                seen, step = Path(config["seen"]), progress.get("step")
                if self.rank == 1 and step is not None:
                    steps = seen.read_text().split() if seen.exists() else []
                    seen.write_text(" ".join([*steps, str(step)]))
                    if str(step) == config["die_at"] and config["die_at"] not in steps:
                        os.kill(os.getpid(), signal.SIGKILL)

        run_job(Job(**config["job"]), Mortal())

    for config in json.loads(sys.argv[1]):
        result = TorchTrainer(
            work, train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(
                name=config["name"], storage_path=config["storage"],
                failure_config=FailureConfig(max_failures=1, controller_failure_limit=1)),
        ).fit()
        result.checkpoint.to_directory(config["export"])
"""


def test_a_killed_worker_costs_the_steps_since_the_last_state(tmp_path: Path) -> None:
    job = compression(tmp_path, evaluate_every=8, steps=32)
    runs = [
        {
            "name": name,
            "job": job | {"snapshots": str(folder)},
            "seen": str(tmp_path / f"{name}.txt"),
            "die_at": die_at,
            "storage": str(tmp_path / "ray"),
            "export": str(tmp_path / f"{name}-export"),
        }
        for name, folder, die_at in (
            ("undisturbed", tmp_path / "states-a", "none"),
            ("killed", tmp_path / "states-b", "24"),
        )
    ]
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_WORKERS, json.dumps(runs)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "undisturbed.txt").read_text().split() == ["8", "16", "24", "32"]
    # after its death at 24 it goes on from the state of 16, gates gone already
    assert (tmp_path / "killed.txt").read_text().split() == ["8", "16", "24", "24", "32"]
    assert same_weights(tmp_path / "undisturbed-export", tmp_path / "killed-export")
