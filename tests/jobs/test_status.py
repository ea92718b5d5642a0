"""`lowrank status` in a terminal and in a pipe."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.status import MOST, shown
from orchestrator.layout import Layout
from orchestrator.spec_io import load_spec
from orchestrator.status import CampaignStatus, ModelStatus
from orchestrator.tracking import Tracking
from tests.jobs.specs import write_spec


def model(name: str, state: str, **values: object) -> ModelStatus:
    return ModelStatus(name=name, state=state, num_steps=100, **values)  # type: ignore[arg-type]


def text(models: list[ModelStatus], every: bool = False, **values: object) -> str:
    fields = {"driver": "12", "num_models": 99, "over": False, "seconds_left": 3700.0} | values
    status = CampaignStatus(name="fleet", models=models, **fields)  # type: ignore[arg-type]
    console = Console(width=120, file=io.StringIO())
    console.print(shown(status, every))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_who_drives_it_and_what_is_left():
    models = [model("a", "finished"), model("b", "training", step=40), model("c", "waiting")]
    lines = text(models).splitlines()
    assert lines[0] == "campaign fleet: driven by process 12"
    assert lines[1] == "1 of 99 models finished, 1 training, about 1:01:40 of training left"
    assert "lowrank run goes on with it" in text(models, driver=None)
    assert "left" not in text(models, driver=None)
    assert "over (lowrank report)" in text(models, driver=None, over=True)


def test_a_model_that_trains_has_its_step_and_figures():
    lines = text([model("b[1]", "training", step=40, density=0.5, validation=2.0, seconds=61)])
    assert lines.splitlines()[3].split() == ["b[1]", "training", "40/100", "0.500", "2.000", "1:01"]


def test_a_failure_has_its_reason():
    assert "failed: the loss is not finite" in text(
        [model("b", "failed", reason="the loss is not finite")]
    )


def test_of_many_models_those_that_are_done_are_counted():
    models = [model(f"trial-{i}", "finished") for i in range(MOST)] + [model("last", "training")]
    assert "trial-7" not in text(models)
    assert "last" in text(models)
    assert f"{MOST} of 99 models finished" in text(models)
    assert "trial-7" in text(models, every=True)


class TestCommand:
    @pytest.fixture
    def spec(self, tmp_path: Path) -> Path:
        return write_spec(tmp_path)

    def test_before_it_has_begun(self, spec: Path):
        result = CliRunner().invoke(app, ["status", str(spec)])
        assert result.exit_code == 1
        assert "nothing is recorded" in result.stderr

    @pytest.mark.parametrize("watch", [[], ["--watch", "1"]])
    def test_it_looks_once_or_until_it_is_over(self, spec: Path, store: str, watch: list[str]):
        loaded = load_spec(spec)
        layout = Layout(Path(loaded.storage), loaded.name)
        layout.create()
        tracking = Tracking(store, loaded.name, layout.artifacts)
        for task in loaded.tasks:
            parent = tracking.task_run(loaded.name, task.name, "", {})
            run = tracking.model_run(
                task.name, parent, f"{task.name} dense", {"task": task.name}, {}
            )
            tracking.writer(run).end("FINISHED")
            tracking.writer(parent).end("FINISHED")
        result = CliRunner().invoke(
            app, ["status", str(spec), "--set", f"tracking.uri={store}", *watch]
        )
        assert result.exit_code == 0
        assert "over (lowrank report)" in result.stdout
        assert "letters dense" in result.stdout
