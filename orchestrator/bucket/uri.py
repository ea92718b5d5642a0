"""Which URIs may be a campaign's storage, and where the files of one lie on this machine."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import redact_uri

WORK_ENV = "LOWRANK_WORK"
"""Folder for what this machine keeps of buckets. An environment variable and no field of the spec:
machines of one cluster have their disks in different places."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Two servers may have buckets of the same name."""

_URI = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<netloc>[^/?#\s]+)(?P<path>[^?#]*)(?P<query>\?[^#\s]*)?"
)
_PATH = re.compile(r"(/[A-Za-z0-9_=+~-][A-Za-z0-9._=+~-]*)*/?")
"""No `..`, nothing hidden, and nothing that a URI would have to quote."""
_USER_IS_A_PLACE = ("abfs", "abfss", "hdfs", "sftp", "ssh", "viewfs")
"""Schemes in which what stands before the @ is no secret: a container, or a user of a server."""


def is_uri(storage: str) -> bool:
    """Whether a storage is a bucket, and not a folder."""
    return "://" in storage and not storage.startswith("file://")


@dataclass(frozen=True)
class StorageUri:
    """A place in a bucket."""

    scheme: str
    netloc: str
    path: str
    """Without slashes around it."""
    query: str
    """Options of the file system, such as `?region=eu-west-1`, or nothing."""

    @classmethod
    def parse(cls, text: str) -> StorageUri:
        """Read a URI.

        Raises:
            ValueError: It breaks a rule; with the rule and the value, secrets hidden.
        """
        shown = redact_uri(text)[:200]
        match = _URI.fullmatch(text)
        if match is None:
            raise ValueError(f"must be a folder, or a URI like s3://BUCKET/PREFIX, got {shown!r}")
        user, _, _ = match["netloc"].rpartition("@")
        is_secret = ":" in user or (user and match["scheme"] not in _USER_IS_A_PLACE)
        query = match["query"] or ""
        if is_secret or redact_uri(query) != query:
            raise ValueError(
                "must hold no user, password or key: credentials come from the environment of each "
                f"machine, got {shown!r}"
            )
        if not _PATH.fullmatch(match["path"]):
            raise ValueError(
                "folders of a URI have letters, digits and . _ = + ~ - and begin with no dot, got "
                f"{shown!r}"
            )
        return cls(match["scheme"], match["netloc"], match["path"].strip("/"), query)

    @property
    def authority(self) -> str:
        """The bucket itself, with the options."""
        return f"{self.scheme}://{self.netloc}/{self.query}"

    def place(self, key: str) -> str:
        """The URI of something in this bucket."""
        return f"{self.scheme}://{self.netloc}/{key}{self.query}"


def working_folder(uri: StorageUri) -> Path:
    """Where this machine keeps what it has of a bucket; another one for each server."""
    chosen = os.environ.get(WORK_ENV)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    base = Path(chosen) if chosen else Path(caches, "lowrank")
    server = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
    told_apart = hashlib.sha256(f"{uri.authority} {server}".encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9.-]", "-", uri.netloc)
    return base.absolute() / f"{uri.scheme}-{name}-{told_apart}"
