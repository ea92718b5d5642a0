"""What may import what."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lowrank

ROOT = Path(__file__).parents[1]
HEAVY = ["ray", "mlflow", "pydantic", "typer", "transformers", "orchestrator", "jobs"]


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    script = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import lowrank",
        "import lowrank.benchmark.harness, lowrank.benchmark.tables",
        "import lowrank.timing, lowrank.counting, lowrank.hf, lowrank.metrics, lowrank.schedule",
    ],
)
def test_importing_the_library_loads_nothing_heavy(statement):
    loaded = modules_after(statement)
    assert {"lowrank", "torch"} <= loaded
    assert loaded.isdisjoint(HEAVY)


def test_running_a_compacted_model_needs_neither_scipy_nor_what_campaigns_need():
    """A model in MLflow's registry asks for torch, transformers, safetensors and numpy only."""
    blocked = ["scipy", "sklearn", *HEAVY[:4]]
    absent = f"sys.modules.update(dict.fromkeys({blocked}))"
    loaded = modules_after(f"{absent}; import lowrank.hf, lowrank.auto")
    assert {"lowrank", "transformers"} <= loaded


def test_the_time_that_is_left_is_told_without_torch():
    """`lowrank status` does, from another terminal."""
    loaded = modules_after("import orchestrator.progress")
    assert loaded.isdisjoint({"torch", "ray", "mlflow", "transformers"})


def test_every_public_name_resolves():
    assert lowrank.__all__ == sorted(lowrank.__all__)
    assert len(lowrank.__all__) == len(set(lowrank.__all__))
    for name in lowrank.__all__:
        assert getattr(lowrank, name).__module__.startswith("lowrank."), name
