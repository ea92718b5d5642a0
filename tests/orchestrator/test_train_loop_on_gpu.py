"""Whole jobs on a GPU: trained in bfloat16, exported, loaded again and counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowrank.hf import load_pretrained
from orchestrator.data.prepare import prepare_data
from orchestrator.export_model import with_densities
from orchestrator.tasks import make_task
from orchestrator.training import evaluate
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import make_classes, make_job, make_lm, method, train_to

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def on_one_core() -> None:
    """The other tests of this folder are kept off the GPU."""


KINDS = ["adaptive", "low-rank", "flop-l0", "faithful", "flop-agp", "agp", "np-l0", "from-scratch"]
RANKS = ["adaptive", "low-rank", "flop-l0", "flop-agp"]
"""Kinds that can start from the covariance of the inputs."""


@pytest.mark.parametrize("make", [make_lm, make_classes])
def test_every_kind_trains_exports_and_loads(make, tmp_path):
    task = make(tmp_path / "raw", precision="bfloat16")
    data = prepare_data(task, tmp_path / "cache", None)
    dense = train_to(tmp_path / "dense", make_job(task, data, method()))
    runtime = make_task(task, data, 0)
    for kind in KINDS:
        how = method(kind=kind, density=0.5, **({"start": "covariance"} if kind in RANKS else {}))
        job = make_job(task, data, how, dense.export, key=kind)
        record = train_to(tmp_path / kind, job)
        record = replace(record, densities=with_densities(record, dense))
        if kind not in ("faithful", "from-scratch"):
            assert record.densities.prunable <= 0.5
        # the exported files on the CPU say what was measured on the GPU
        model = load_pretrained(tmp_path / kind)
        found = evaluate(model, runtime, _Cpu(), "test")[runtime.metric.name]
        assert found == pytest.approx(record.test[runtime.metric.name], rel=2e-3)


class _Cpu(LocalWorkers):
    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")
