"""Objects of a real store: what it answers, and what is made of that."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.bucket import objects as module
from orchestrator.bucket.mirror import mirror_of
from orchestrator.bucket.objects import Objects, StorageAway, open_bucket
from orchestrator.errors import StorageError
from tests.orchestrator.bucket.conftest import Bucket, forget_buckets
from tests.orchestrator.bucket.seaweed import READER, Store


@pytest.fixture
def objects(bucket: Bucket) -> Objects:
    return bucket.objects_of("one")


def test_what_is_written_is_read(objects: Objects, tmp_path: Path):
    assert objects.read("a/b.txt") is None
    objects.write("a/b.txt", b"first")
    objects.write("a/b.txt", b"second")
    assert objects.read("a/b.txt") == b"second"
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 50_000)  # more than one part
    objects.upload(source, "a/large")
    digest = objects.download("a/large", target)
    assert target.read_bytes() == source.read_bytes()
    assert len(digest or "") == 64
    assert objects.download("a/none", target) is None
    assert target.read_bytes() == source.read_bytes()


def test_no_more_is_fetched_than_asked_for(objects: Objects, tmp_path: Path):
    objects.write("long", b"x" * 1000)
    objects.download("long", tmp_path / "long", most=10)
    assert (tmp_path / "long").stat().st_size == 11  # so that it is not taken for the whole


def test_names_and_what_is_removed(objects: Objects):
    for key in ("a/1", "a/2", "a/deep/3", "b/4"):
        objects.write(key, b"x")
    assert objects.names("a") == ["1", "2"]
    assert objects.names("none") == []
    objects.delete("a/1")
    objects.delete("a/1")
    assert objects.names("a") == ["2"]
    objects.delete_below("a")
    objects.delete_below("none")
    assert objects.names("a") == objects.names("a/deep") == []
    assert objects.read("b/4") == b"x"


def test_who_may_only_read(bucket: Bucket, tmp_path: Path):
    bucket.objects_of("one").write("a", b"x")
    reader = bucket.objects_of("two", READER)
    assert reader.read("a") == b"x"
    # refused at once: waiting would not help
    patient = replace(reader, wait_s=600)
    with pytest.raises(StorageError, match=r"cannot write s3://bucket/a: .*DENIED") as error:
        patient.write("a", b"y")
    assert not isinstance(error.value, StorageAway)
    with pytest.raises(StorageError, match="INVALID_ACCESS_KEY_ID"):
        bucket.objects_of("two", "stranger").names("")


def test_a_bucket_that_is_not_there(s3: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    forget_buckets()
    mirror = mirror_of(tmp_path, open_bucket("s3://nowhere/"))
    with pytest.raises(StorageError, match=r"cannot write s3://nowhere/runs/\.writable-\d+: "):
        mirror.prove(tmp_path / "runs")
    forget_buckets()


def test_a_disk_of_this_machine_that_is_full_is_not_the_buckets_fault(objects: Objects):
    objects.write("a", b"x" * 100_000)
    with pytest.raises(StorageError, match=r"^storage: cannot write /dev/full: no space left"):
        objects.download("a", Path("/dev/full"))


@pytest.mark.slow
def test_a_store_that_is_away_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed and started again, with what it held."""
    own = Store(tmp_path / "store")
    own.start()
    own.make_bucket("there")
    for name, value in own.environment().items():
        monkeypatch.setenv(name, value)
    forget_buckets()
    objects = open_bucket("s3://there/")
    try:
        objects.write("a", b"x")
        own.kill()
        with pytest.raises(StorageAway, match=r"cannot read s3://there/a: .*NETWORK_CONNECTION"):
            objects.read("a")
        again = threading.Thread(target=own.start)
        again.start()
        assert replace(objects, wait_s=120).read("a") == b"x"
        again.join()
    finally:
        own.kill()
        forget_buckets()


def test_a_server_that_asks_for_patience(monkeypatch: pytest.MonkeyPatch):
    """As S3 does when it is asked too often."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    said = [OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your rate")] * 3
    objects = Objects(module.StorageUri.parse("s3://b/"), None, "b", wait_s=60)

    def call() -> str:
        if said:
            raise said.pop()
        return "done"

    assert objects._ask(call, "write", "a") == "done"
    said = [OSError("AWS Error SLOW_DOWN")]
    with pytest.raises(StorageAway):
        replace(objects, wait_s=0)._ask(call, "write", "a")


@pytest.mark.parametrize(
    ("authority", "words"),
    [
        ("nope://b/", "nope://b/ cannot be opened: Protocol not known: nope"),
        ("oss://b/", "oss://b/ needs another package: Install ossfs"),
    ],
)
def test_schemes_that_nothing_here_speaks(authority: str, words: str):
    with pytest.raises(StorageError, match=words):
        open_bucket(authority)


def test_a_scheme_of_fsspec():
    objects = open_bucket("memory://b/")
    objects.write("a/1", b"x")
    assert objects.read("a/1") == b"x"
    assert objects.names("a") == ["1"]
    objects.write("a/2", b"y")
    assert objects.names("a") == ["1", "2"]
    assert objects.below("") == ["a/1", "a/2"]
    objects.delete_below("a")
    assert objects.read("a/2") is None
    # as of a server with one tree, such as hdfs://HOST/ or sftp://HOST/
    assert replace(objects, base="")._path("a/1") == "/a/1"
