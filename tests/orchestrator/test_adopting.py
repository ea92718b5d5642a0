"""A dense reference of another campaign of the same storage, taken over."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank.export import WEIGHTS, sha256_of
from orchestrator.adopting import adopt
from orchestrator.bucket.kept import journal_at
from orchestrator.launch import Launch
from orchestrator.layout import Layout
from orchestrator.recording import trained
from orchestrator.records import RECORD, ModelRecord
from tests.orchestrator.bucket.conftest import Bucket, bucket, s3  # noqa: F401
from tests.orchestrator.record_factory import make_speed
from tests.orchestrator.small import Family

KEY = "d" * 12


def launch_of(storage: str, campaign: str, key: str = KEY) -> Launch:
    return Launch(
        job={"key": key},
        storage=storage,
        campaign=campaign,
        resources={},
        tracking_uri="",
        run_id="",
        metric="bits_per_character",
    )


def leave(layout: Layout, dense: ModelRecord) -> Path:
    """As a campaign that trained it, logged it and measured it has it on its disk."""
    home = layout.model(KEY)
    shutil.copytree(dense.export, home)
    logged = replace(
        dense,
        key=KEY,
        export=str(home),
        speed=[make_speed(batch=1, speedup=1.0, dense_ms=2.0)],
        mlflow_run_id="theirs",
        model_uri="models:/m-theirs",
        finished=12.0,
    )
    logged.save(home / RECORD)
    return home


def test_it_is_here_as_if_it_had_been_trained_here(lm: Family, tmp_path: Path):
    (tmp_path / "cache").mkdir()
    leave(Layout(tmp_path, "earlier"), lm.dense)
    launch = launch_of(str(tmp_path), "later")
    assert adopt(launch) == "earlier"
    record = trained(launch)
    assert record is not None
    assert (record.validation, record.curve) == (lm.dense.validation, lm.dense.curve)
    assert (record.speed, record.mlflow_run_id, record.model_uri) == ([], None, None)
    assert record.finished is None
    layout = launch.layout
    journal = journal_at(layout.mirror.place(layout.journal(KEY)))
    assert [each.point for each in journal.points] == lm.dense.curve
    # the campaign that it is from may be deleted
    shutil.rmtree(tmp_path / "earlier")
    assert sha256_of(layout.model(KEY) / WEIGHTS) == lm.dense.export_sha256


def test_a_damaged_one_is_passed_over(lm: Family, tmp_path: Path):
    home = leave(Layout(tmp_path, "earlier"), lm.dense)
    whole = (home / WEIGHTS).read_bytes()
    launch = launch_of(str(tmp_path), "later")
    (home / WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert adopt(launch) is None
    assert not launch.layout.model(KEY).exists()
    # another has it
    leave(Layout(tmp_path, "middle"), lm.dense)
    assert adopt(launch) == "middle"


def test_weights_that_change_while_they_are_copied(
    lm: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    leave(Layout(tmp_path, "earlier"), lm.dense)
    copy = shutil.copytree

    def torn(source: Path, target: Path, **options: object) -> None:
        copy(source, target, **options)  # type: ignore[arg-type]
        (target / WEIGHTS).write_bytes(b"new")

    monkeypatch.setattr(shutil, "copytree", torn)
    launch = launch_of(str(tmp_path), "later")
    assert adopt(launch) is None
    assert list((tmp_path / "later").rglob("*")) in ([], [tmp_path / "later" / "models"])
    assert "is not taken over: its weights are not what was exported" in caplog.text


def test_nobody_has_it(lm: Family, tmp_path: Path):
    leave(Layout(tmp_path, "earlier"), lm.dense)
    assert adopt(launch_of(str(tmp_path), "later", "e" * 12)) is None
    # nor does a campaign take over from itself
    assert adopt(launch_of(str(tmp_path), "earlier")) is None


def test_through_a_bucket(lm: Family, bucket: Bucket):  # noqa: F811
    bucket.seen_by("one")
    layout = Layout.of(bucket.uri, "earlier")
    layout.mirror.push_folder(leave(layout, lm.dense))
    # another machine, and then a third that sees what the second took over
    bucket.seen_by("two")
    launch = launch_of(bucket.uri, "later")
    assert adopt(launch) == "earlier"
    bucket.seen_by("three")
    launch.layout.mirror.forget(launch.layout.model("unknown"))
    record = trained(launch_of(bucket.uri, "later"))
    assert record is not None
    assert record.export_sha256 == lm.dense.export_sha256
    found = launch.layout
    assert len(journal_at(found.mirror.place(found.journal(KEY))).points) == len(lm.dense.curve)
