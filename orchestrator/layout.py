"""Where a campaign keeps what, and the lock that keeps a second driver out."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from orchestrator.bucket.folder import Mirror
from orchestrator.bucket.places import FOLDER, opened
from orchestrator.draws import DRAWS
from orchestrator.earlier import EARLIER
from orchestrator.errors import StorageError, storage_error
from orchestrator.records import RECORD

logger = logging.getLogger(__name__)

LOCK_TRIES, LOCK_PAUSE_S = 50, 0.02
"""Who only looks holds the lock for microseconds, another driver for hours: a second tells them
apart, however often somebody looks."""


@dataclass(frozen=True)
class Layout:
    """Folders of one campaign under the storage folder; all absolute.

    storage/
      mlflow.db, mlflow-artifacts/     the default tracking store, shared by campaigns
      cache/                           prepared data, by content hash
      CAMPAIGN/
        spec.yaml, result.json, report.html
        card-TASK.md                   of the chosen model
        models/KEY/                    exported model and its record.json
        snapshots/KEY/                 states of a training that is not finished, to go on from
        starts/KEY/                    states of a ladder's trunk, until all its branches are models
        journal/KEY.jsonl              its curve, until all of it is in MLflow
        hung/KEY/                      where workers stood that were ended because they hung
        draws.json                     what a sampler that learns has suggested
        warm-start.json                trials of earlier campaigns, as they were read once
        stopping/KEY.json              what rungs saw of a draw, and whether it was stopped
        ray-job.json                   the job of a driver on a cluster, while it runs
        train/, tune/                  Ray's own state: needed only while trials run
    """

    storage: Path
    campaign: str
    mirror: Mirror = FOLDER
    """Between these folders and a bucket, if that is the storage; then they are this machine's."""

    @classmethod
    def of(cls, storage: str, campaign: str) -> Layout:
        """Of the storage that a spec names, a folder or a URI.

        Raises:
            StorageError: The URI cannot be opened.
        """
        mirror, path = opened(storage)
        return cls(path, campaign, mirror)

    @property
    def root(self) -> Path:
        return self.storage / self.campaign

    @property
    def cache(self) -> Path:
        return self.storage / "cache"

    @property
    def artifacts(self) -> Path:
        return self.storage / "mlflow-artifacts"

    def artifacts_of(self, tracking_uri: str) -> Path:
        """Where runs keep their artifacts if their store is a database file: in the storage, or if
        that is a bucket beside the file, which is this machine's as well."""
        _, found, rest = tracking_uri.partition(":///")
        if self.mirror.is_bucket and found and tracking_uri.startswith("sqlite"):
            return Path(rest.partition("?")[0]).absolute().with_name("mlflow-artifacts")
        return self.artifacts

    @property
    def spec(self) -> Path:
        return self.root / "spec.yaml"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def card(self, task: str) -> Path:
        return self.root / f"card-{task}.md"

    @property
    def draws(self) -> Path:
        return self.root / DRAWS

    @property
    def earlier(self) -> Path:
        """What `search.warm_start` has taken."""
        return self.root / EARLIER

    @property
    def stopping(self) -> Path:
        return self.root / "stopping"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def tune(self) -> Path:
        return self.root / "tune"

    def model(self, key: str) -> Path:
        return self.root / "models" / key

    def snapshots(self, key: str) -> Path:
        return self.root / "snapshots" / key

    def starts(self, key: str) -> Path:
        """Of a ladder's branches, by the key of its trunk."""
        return self.root / "starts" / key

    def journal(self, key: str) -> Path:
        return self.root / "journal" / f"{key}.jsonl"

    def hung(self, key: str) -> Path:
        return self.root / "hung" / key

    def record(self, key: str) -> Path:
        return self.model(key) / RECORD

    @property
    def ray_job(self) -> Path:
        """Of a driver that holds the campaign on a cluster."""
        return self.root / "ray-job.json"

    def create(self) -> None:
        """Make the folders, and prove that files can be written.

        Raises:
            StorageError: Not a folder, no permission, or no space.
        """
        probe = self.root / ".writable"
        try:
            for folder in (self.root / "models", self.train, self.tune, self.cache):
                folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        except OSError as error:
            raise storage_error(self.root, error) from error
        self.mirror.prove(self.root)

    @contextmanager
    def locked(self, say: Callable[[str], None] = logger.warning) -> Iterator[None]:
        """Hold the campaign for this process.

        Args:
            say: Hears of the driver on another machine that seems to be dead.

        Raises:
            StorageError: Another process drives the campaign.
        """
        path = self.root / ".lock"
        with path.open("a+", encoding="utf-8") as file:
            try:
                _lock(file)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise storage_error(path, error) from error
                file.seek(0)
                raise StorageError(
                    f"campaign {self.campaign!r} is being run by process {file.read().strip()}; "
                    "one process at a time may drive a campaign"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            with self.mirror.leased(self.root, self.campaign, say):
                yield

    def others(self) -> list[str]:
        """Names of further campaigns in the storage, sorted."""
        shared = {self.campaign, self.cache.name, self.artifacts.name}
        return [name for name in self.mirror.campaigns(self.storage) if name not in shared]

    def driver(self) -> str | None:
        """The process that holds the campaign, as it wrote it down; None if nobody does."""
        path = self.root / ".lock"
        if (elsewhere := self.mirror.driver(self.root)) is not None:
            return elsewhere
        try:
            with path.open(encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return file.read().strip() or "unknown"
        except OSError:
            return None
        return None


def _lock(file: TextIO) -> None:
    """Asked for again before it is said to be taken: `driver` holds it for an instant."""
    for _ in range(LOCK_TRIES - 1):
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(LOCK_PAUSE_S)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
