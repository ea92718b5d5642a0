"""`lowrank plan`, as a person and as a program call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from jobs.__main__ import app
from orchestrator.layout import Layout
from orchestrator.plan.plan import COUNTED, GIVEN, PROBED, Plan, plan_path
from orchestrator.plan.profile import Profile
from tests.jobs.specs import write_spec


def lowrank(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def plan_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_probed_saved_and_planned_again_from_the_profile(tmp_path: Path):
    spec, saved = write_spec(tmp_path), tmp_path / "profile.json"
    asked = ["plan", spec, "--seconds", "0.1", "--save-profile", saved]
    shown = lowrank(*asked, "--set", "measure.repeats=7", "--set", "measure.batch=[1]")
    assert shown.exit_code == 0
    assert "campaign small: 2 tasks, 10 models, 76 steps, on one machine" in shown.stdout
    for word in ("dense training", "time ", "compute ", "storage ", "a worker takes up to"):
        assert word in shown.stdout
    layout = Layout(tmp_path / "runs", "small")
    kept = Plan.load(plan_path(layout))
    assert kept is not None
    assert (kept.source, kept.num_models) == (PROBED, 10)
    assert kept.seconds is not None
    assert 0 < kept.seconds.low < kept.seconds.value < kept.seconds.high
    # nothing else of the campaign is there
    assert sorted(path.name for path in layout.root.iterdir()) == ["plan.json"]
    assert set(Profile.load(saved).tasks) == {"letters", "moods"}

    again = plan_of(lowrank("plan", spec, "--profile", saved, "--json"))
    assert again["source"] == GIVEN
    assert again["tasks"][0]["steps"] == {"dense": 6, "gated": 16, "finetune": 16}
    # twice the steps take longer, and nothing is trained to know it
    more = ["--set", "method.steps=80", "--json"]
    longer = plan_of(lowrank("plan", spec, "--profile", saved, *more))
    assert longer["seconds"]["value"] > again["seconds"]["value"]

    other = lowrank("plan", spec, "--profile", saved, "--set", "tasks.letters.dense.batch=16")
    assert other.exit_code == 2
    assert "has batch per worker 8, the spec 16" in other.stderr


def test_counts_alone_tell_bytes_and_no_hours(tmp_path: Path):
    spec = write_spec(tmp_path)
    found = plan_of(lowrank("plan", spec, "--no-probe", "--json"))
    assert found["source"] == COUNTED
    assert found["seconds"] is None
    assert sum(found["bytes"].values()) > 1e6
    shown = lowrank("plan", spec, "--no-probe").stdout
    assert "hours    not without a probe" in shown
    assert "at most" not in shown


def test_stopping_makes_of_a_plan_the_most_that_it_takes(tmp_path: Path):
    draws = "trials_per_density: 3, finetune_learning_rate: {uniform: [0.001, 0.1]}"
    search = f"search={{density: [0.5, 0.3], {draws}, stopping: {{rungs: [0.6]}}}}"
    asked = ["--set", search, "--set", "method={kind: low-rank, steps: 1000}"]
    shown = lowrank("plan", write_spec(tmp_path), "--no-probe", *asked).stdout
    assert "at most 14 models" in shown
    assert "search.stopping may end draws early" in shown


def test_a_campaign_that_cannot_fit_is_refused_before_anything_is_read(tmp_path: Path):
    spec = write_spec(tmp_path)
    big = ["--set", "resources.cpus_per_worker=8", "--cluster", '{"CPU": 4}']
    result = lowrank("plan", spec, *big)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "one trial needs 1 worker of 8 CPU" in result.stderr
    assert "what would fit: cpus_per_worker: 4" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_is_too_small_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr("orchestrator.plan.refusals.shutil.disk_usage", lambda _: usage)
    result = lowrank("plan", write_spec(tmp_path), "--no-probe")
    assert result.exit_code == 2
    assert "has 100 kB free, the campaign writes" in result.stderr


def test_a_plan_stays_once_the_campaign_has_begun(tmp_path: Path):
    spec, layout = write_spec(tmp_path), Layout(tmp_path / "runs", "small")
    lowrank("plan", spec, "--no-probe")
    before = plan_path(layout).read_text()
    layout.spec.write_text("begun")
    shown = lowrank("plan", spec, "--no-probe", "--set", "method.steps=90")
    assert "its plan stays" in shown.stdout
    assert plan_path(layout).read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare"], "has no result"),
        (["--no-probe", "--with-ray"], "--no-probe counts only"),
        (["--profile", "x.json", "--with-ray"], "takes the place of a probe"),
        (["--profile", "x.json"], "x.json: cannot be read"),
        (["--cluster", "four"], "--cluster must be like"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: list[str], message: str):
    result = lowrank("plan", write_spec(tmp_path), *options)
    assert result.exit_code != 0
    assert message in result.stderr
