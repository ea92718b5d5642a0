"""States, curves and data that outlive the machine on which they were made."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowrank.export import WEIGHTS
from orchestrator import resume
from orchestrator.bucket import kept
from orchestrator.bucket.kept import journal_at, states_at
from orchestrator.bucket.mirror import BucketMirror
from orchestrator.bucket.notes import send_notes
from orchestrator.bucket.objects import Objects, StorageAway
from orchestrator.bucket.places import here, opened, path_here
from orchestrator.data import prepare as preparing
from orchestrator.data.prepare import prepare_data
from orchestrator.job import Job
from orchestrator.ladder import Ladder, Starts
from orchestrator.records import CurvePoint
from orchestrator.snapshot import TENSORS, Snapshot
from orchestrator.train_loop import run_job, run_trunk
from orchestrator.workers import LocalWorkers
from tests.integration.conftest import same_weights
from tests.orchestrator.bucket.conftest import Bucket
from tests.orchestrator.ladders import chain_jobs, ladder_jobs, run_ladder
from tests.orchestrator.small import Family, make_job, method, train_to


def state(value: float) -> Snapshot:
    return Snapshot(tensors={"w": torch.full((3,), value)}, facts={"step": value})


def mirror_at(place: str) -> tuple[BucketMirror, Path]:
    mirror, path = opened(place)
    assert isinstance(mirror, BucketMirror)
    return mirror, path


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def point(step: int) -> CurvePoint:
    return CurvePoint(step=step, phase="dense", seconds=1.0, train_loss=0.5, learning_rate=0.1)


class TestStates:
    @pytest.fixture
    def place(self, bucket: Bucket) -> str:
        bucket.seen_by("one")
        return f"{bucket.uri}/c/snapshots/k"

    def test_another_machine_goes_on(self, bucket: Bucket, place: str):
        states = states_at(place)
        assert states.last_whole() is None
        for step in (1, 20, 300):
            states.save(step, state(step))
        assert files_below(path_here(place)) == [], "they would fill the disk of every machine"
        bucket.seen_by("two")
        states = states_at(place)
        assert states.steps() == [300, 20]
        assert states.last_whole() == 300
        assert torch.equal(states.load(300).tensors["w"], torch.full((3,), 300.0))
        assert files_below(path_here(place)) == []
        states.clear()
        assert states.steps() == []

    def test_a_damaged_one_is_passed_over(
        self, bucket: Bucket, place: str, caplog: pytest.LogCaptureFixture
    ):
        states = states_at(place)
        for step in (1, 2, 3):
            states.save(step, state(step))
        mirror, folder = mirror_at(place)
        key = mirror.key(folder / "000000003" / TENSORS)
        content = mirror.objects.read(key)
        assert content is not None
        mirror.objects.write(key, content[:-1] + b"!")
        bucket.seen_by("two")
        with caplog.at_level(logging.WARNING):
            assert states_at(place).last_whole() == 2
        assert "is not what was written; the state before it is used" in caplog.text

    def test_one_that_was_not_sent_as_a_whole_does_not_count(
        self, bucket: Bucket, place: str, monkeypatch: pytest.MonkeyPatch
    ):
        states = states_at(place)
        states.save(1, state(1))
        upload = Objects.upload

        def fails(self: Objects, path: Path, key: str) -> None:
            if key.endswith(TENSORS):
                raise StorageAway("away")
            upload(self, path, key)

        with monkeypatch.context() as context:
            context.setattr(Objects, "upload", fails)
            with pytest.raises(StorageAway):
                states.save(2, state(2))
        assert files_below(path_here(place)) == []
        assert states.last_whole() == 1
        bucket.seen_by("two")
        states = states_at(place)
        states.save(2, state(2))
        assert states.last_whole() == 2

    def test_training_does_not_wait_for_a_bucket_that_is_away(self, place: str):
        states = states_at(place)
        assert isinstance(states, kept.BucketStates)
        assert states._mirror.objects.wait_s > 0  # who begins does
        assert states._sender.objects.wait_s == 0
        needed = states_at(place, needed=True)
        assert isinstance(needed, kept.BucketStates)
        assert needed._sender.objects.wait_s > 0


def test_a_training_goes_on_from_the_bucket_with_the_same_bits(
    bucket: Bucket, lm: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resume, "INTERVAL_S", 0.0)
    monkeypatch.setattr(resume, "LEAST_APART", 0.0)
    job = make_job(lm.task, lm.data, method(kind="adaptive", density=0.3), lm.dense.export)
    undisturbed = train_to(tmp_path / "undisturbed", job)

    bucket.seen_by("one")
    places = {name: f"{bucket.uri}/{name}" for name in ("cache/data", "c/models/dense", "c/s/k")}
    for place, source in zip(places.values(), (lm.data.folder, lm.dense.export), strict=False):
        mirror, folder = opened(place)
        mirror.push_folder(folder, source=Path(source))
    data, dense, snapshots = places.values()

    def here_again() -> Job:
        return replace(job, data=here(data), dense=here(dense), snapshots=snapshots)

    def dies(points: list[CurvePoint]) -> None:
        if points[-1].step >= 8:
            raise SystemExit

    with pytest.raises(SystemExit):
        run_job(here_again(), LocalWorkers(), dies)
    bucket.seen_by("two")
    assert states_at(snapshots).last_whole() is not None
    resumed = train_to(tmp_path / "resumed", here_again())
    assert same_weights(Path(undisturbed.export), Path(resumed.export))
    assert [p.train_loss for p in resumed.curve] == [p.train_loss for p in undisturbed.curve]


def test_the_models_of_a_ladder_are_made_on_machines_of_their_own(
    bucket: Bucket, lm: Family, tmp_path: Path
):
    trunk, branches = ladder_jobs((lm.task, lm.data, lm.dense), tmp_path)
    undisturbed = run_ladder(trunk, branches, tmp_path / "undisturbed")

    def in_bucket(job: Job) -> Job:
        assert job.ladder is not None
        ladder = job.ladder | {"starts": f"{bucket.uri}/c/starts/k"}
        return replace(job, ladder=ladder, snapshots=None)

    bucket.seen_by("trunk")
    run_trunk(in_bucket(trunk), LocalWorkers())
    for job, expected in zip(branches, undisturbed, strict=True):
        bucket.seen_by(job.key)
        record = train_to(tmp_path / "models" / job.key, in_bucket(job))
        assert record.export_sha256 == expected.export_sha256
    assert not list((tmp_path / "machines").rglob(TENSORS)), "they would fill every machine's disk"

    again = in_bucket(trunk)
    assert again.ladder is not None
    starts, ladder = Starts(again.ladder["starts"], LocalWorkers()), Ladder(**again.ladder)
    assert starts.reached(ladder) == len(branches)
    store = starts._store(0)
    assert isinstance(store, kept.BucketStates)
    assert store._sender.objects.wait_s > 0  # without a start there is no branch
    starts.clear()
    bucket.seen_by("trunk")
    assert starts.reached(ladder) == 0


def test_the_models_of_a_chain_are_made_on_machines_of_their_own(
    bucket: Bucket, lm: Family, tmp_path: Path
):
    jobs = chain_jobs((lm.task, lm.data, lm.dense), tmp_path, tmp_path / "models")
    for job in jobs:
        mirror = bucket.seen_by(job.key)
        expected = train_to(tmp_path / "models" / job.key, replace(job, snapshots=None))
        place = f"{bucket.uri}/c/models/{job.key}"
        assert job.ladder is not None
        if (above := job.ladder["parent"]) is not None:
            ladder = job.ladder | {"parent": f"{bucket.uri}/c/models/{Path(above).name}"}
            other = replace(job, ladder=ladder, snapshots=None)
            record = train_to(tmp_path / "others" / job.key, other)
            assert record.export_sha256 == expected.export_sha256
        mirror.push_folder(path_here(place), source=Path(expected.export))
    assert not list((tmp_path / "machines").rglob(WEIGHTS)), "of a model above"


def test_a_curve_is_told_once(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    place = f"{bucket.uri}/c/journal/k.jsonl"
    bucket.seen_by("one")
    monkeypatch.setattr(kept, "LEAST_APART", 0.0)
    journal = journal_at(place)
    journal.add([point(1), point(2)])
    monkeypatch.setattr(kept, "LEAST_APART", 1e9)
    journal.add([point(3)])
    journal.add([point(4)])  # not sent yet
    bucket.seen_by("two")
    assert [each.point.step for each in journal_at(place).points] == [1, 2, 3]
    bucket.seen_by("one")
    journal.settle()
    bucket.seen_by("two")
    other = journal_at(place)
    assert other.points == journal.points
    assert other.add([point(4), point(5)]) == other.points[4:]
    other.settle()
    other.remove()
    bucket.seen_by("one")
    assert journal_at(place).points == []  # not even those that this machine had
    assert not path_here(place).exists()


def test_a_curve_that_cannot_be_sent_holds_up_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    place = f"{bucket.uri}/c/journal/k.jsonl"
    bucket.seen_by("one")
    journal = journal_at(place)

    def fails(self: Objects, path: Path, key: str) -> None:
        raise StorageAway("away")

    with monkeypatch.context() as context, caplog.at_level(logging.WARNING):
        context.setattr(Objects, "upload", fails)
        assert len(journal.add([point(1)])) == 1
    assert "the curve cannot be sent: away" in caplog.text
    assert [each.point.step for each in journal.points] == [1]
    journal.settle()
    bucket.seen_by("two")
    assert [each.point.step for each in journal_at(place).points] == [1]


def test_notes_of_a_machine_come_to_another(bucket: Bucket):
    place = f"{bucket.uri}/c/hung/k"
    bucket.seen_by("one")
    notes = path_here(place)
    notes.mkdir(parents=True)
    (notes / "worker0.txt").write_text("stood there")
    (notes / "worker1.txt").touch()  # of one that did not hang
    assert send_notes(place) == 1
    assert files_below(notes) == ["worker1.txt"]
    mirror = bucket.seen_by("two")
    mirror.fetch_files(path_here(place))
    assert files_below(path_here(place)) == ["worker0.txt"]


def test_data_are_prepared_on_one_machine_alone(
    bucket: Bucket, lm: Family, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    mirror, cache = bucket.seen_by("one"), path_here(f"{bucket.uri}/cache")
    first = prepare_data(lm.task, cache, None, mirror)
    assert first.content_hash == lm.data.content_hash

    mirror, cache = bucket.seen_by("two"), path_here(f"{bucket.uri}/cache")
    with monkeypatch.context() as context:
        context.setattr(preparing, "_write", lambda *_: pytest.fail("prepared again"))
        second = prepare_data(lm.task, cache, None, mirror)
    assert second.folder != first.folder
    assert (second.tokens("train") == first.tokens("train")).all()

    # damaged in the bucket, they are made again and mended there
    key = mirror.key(second.folder / "train.tokens.npy")
    mirror.objects.write(key, b"damaged")
    mirror, cache = bucket.seen_by("three"), path_here(f"{bucket.uri}/cache")
    with caplog.at_level(logging.WARNING):
        third = prepare_data(lm.task, cache, None, mirror)
    assert "the data are prepared again" in caplog.text
    assert (third.tokens("train") == first.tokens("train")).all()
    bucket.seen_by("four")
    assert here(f"{bucket.uri}/cache/{first.content_hash}")
