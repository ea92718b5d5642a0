"""From the place that travels between machines to the files on this one.

A place is a path that all machines see, or the URI of something in a bucket. What is asked for by
its URI is fetched; a path is left as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.bucket.folder import Mirror
from orchestrator.bucket.mirror import BucketMirror, mirror_of
from orchestrator.bucket.objects import open_bucket
from orchestrator.bucket.uri import StorageUri, is_uri, working_folder
from orchestrator.errors import StorageError

FOLDER = Mirror()
"""Of every storage that is a folder."""


def opened(place: str) -> tuple[Mirror, Path]:
    """What mirrors a place, and its path on this machine, whether it is there or not.

    Raises:
        StorageError: The URI cannot be opened.
    """
    if not is_uri(place):
        return FOLDER, Path(place)
    try:
        uri = StorageUri.parse(place)
    except ValueError as error:
        raise StorageError(f"storage: {error}") from error
    mirror = _bucket(uri.authority, working_folder(uri))
    return mirror, mirror.root / uri.path


@functools.cache
def _bucket(authority: str, root: Path) -> BucketMirror:
    return mirror_of(root, open_bucket(authority))


def path_here(place: str) -> Path:
    """Where a place is, or would be, on this machine; nothing is fetched."""
    return Path(place) if not is_uri(place) else opened(place)[1]


def here(place: str) -> str:
    """A folder of the storage, on this machine from now on.

    Raises:
        StorageError: It is not there, is damaged, or the bucket does not answer.
    """
    mirror, path = opened(place)
    if mirror.is_bucket and not mirror.fetch_folder(path):
        raise _absent(place)
    return str(path)


@contextmanager
def borrowed(place: str) -> Iterator[str]:
    """The same for the length of the block: what was fetched for it is removed again."""
    mirror, path = opened(place)
    if not isinstance(mirror, BucketMirror):
        yield str(path)
        return
    with mirror.borrowed(path) as found:
        if not found:
            raise _absent(place)
        yield str(path)


def _absent(place: str) -> StorageError:
    return StorageError(f"storage: {place} is not in the bucket, or not as a whole")
