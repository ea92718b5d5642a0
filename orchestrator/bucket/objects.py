"""Objects of a bucket: read, written and listed, with errors that say what to do.

What speaks to the server is pyarrow (S3, Google Cloud Storage, Azure, HDFS) or, for other schemes,
fsspec. Both take credentials from the environment. Their errors are texts; here they become three
kinds: the object is not there, the server refuses, or it does not answer and may do so later.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import posixpath
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.bucket.uri import StorageUri
from orchestrator.errors import StorageError, redact_uri, storage_error

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_S = 900.0
"""How long a bucket that does not answer is asked again, for what would be lost otherwise. As long
as machines are waited for (`resources.wait_minutes`); it is less than a hung worker is given."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Between two questions, doubled in between; the client has asked three times before each."""
CHUNK = 8 * 2**20
"""Bytes in memory at a time."""
MOST_BYTES = 64 * 2**20
"""Of an object that is read as a whole: notes and lists of files are far smaller."""

_REFUSED = re.compile(
    r"ACCESS_DENIED|SIGNATURE|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|NO_SUCH_BUCKET"
    r"|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|REQUEST_TIME_TOO_SKEWED|ExpiredToken"
    r"|PERMISSION_DENIED|UNAUTHENTICATED|AuthenticationFailed|AuthorizationFailure"
    r"|ContainerNotFound|HTTP status 40[013]\b",
    re.IGNORECASE,
)
"""What servers say to a request that will fail again."""


class StorageAway(StorageError):
    """The bucket did not answer for as long as it was waited for; the same may be asked later."""


class DamagedError(StorageError):
    """What the bucket holds is not what was written."""


@dataclass(frozen=True)
class Objects:
    """A bucket; keys are paths in it, with slashes and none in front.

    Every method raises `StorageError` when the bucket refuses, `StorageAway` when it does not
    answer.
    """

    uri: StorageUri
    files: Any
    """A `pyarrow.fs.FileSystem`."""
    base: str
    """The bucket as this file system calls it; nothing where paths begin with a slash."""
    wait_s: float = 0.0
    """How long a bucket that is away is asked again; 0 leaves it at the client's own attempts."""

    def read(self, key: str) -> bytes | None:
        """The object's content; None without one."""

        def call() -> bytes:
            with self.files.open_input_stream(self._path(key)) as stream:
                return bytes(stream.read(MOST_BYTES + 1))

        try:
            content = self._ask(call, "read", key)
        except FileNotFoundError:
            return None
        if len(content) > MOST_BYTES:
            raise DamagedError(f"{self.shown(key)} must have at most {MOST_BYTES:,} bytes")
        return content

    def write(self, key: str, content: bytes) -> None:
        """Put an object, in place of an earlier one; it appears whole."""

        def call() -> None:
            with self._writing(key) as stream:
                stream.write(content)

        self._ask(call, "write", key)

    def upload(self, path: Path, key: str) -> None:
        """Put a file."""

        def call() -> None:
            with path.open("rb") as source, self._writing(key) as stream:
                while chunk := source.read(CHUNK):
                    stream.write(chunk)

        if not path.is_file():
            raise StorageError(f"storage: {path} cannot be sent: it is gone")
        self._ask(call, "write", key)

    def download(self, key: str, path: Path, most: int | None = None) -> str | None:
        """Write an object into a file.

        Args:
            key: The object.
            path: The file; its folder must be there.
            most: Bytes; of a longer object no more are fetched.

        Returns:
            The SHA-256 of what was written, or None: there is no such object.

        Raises:
            StorageError: The file cannot be written, too.
        """

        def call() -> str:
            digest, left = hashlib.sha256(), float("inf") if most is None else most + 1
            with self.files.open_input_stream(self._path(key)) as stream, _Local(path) as file:
                while left > 0 and (chunk := stream.read(int(min(CHUNK, left)))):
                    file.write(chunk)
                    digest.update(chunk)
                    left -= len(chunk)
            return digest.hexdigest()

        try:
            return self._ask(call, "read", key)
        except FileNotFoundError:
            return None

    def names(self, key: str) -> list[str]:
        """Names of the objects directly below a folder, in order."""
        return sorted(posixpath.basename(e.path) for e in self._list(key, False) if e.is_file)

    def folders(self, key: str) -> list[str]:
        """Names of the folders directly below a folder, in order."""
        return sorted(posixpath.basename(e.path) for e in self._list(key, False) if not e.is_file)

    def below(self, key: str) -> list[str]:
        """Keys of all objects below a folder."""
        found = (each.path for each in self._list(key, True) if each.is_file)
        return sorted(path[len(self.base) :].lstrip("/") for path in found)

    def changed(self, key: str) -> float | None:
        """When an object was last written, in seconds since the epoch by the server's clock."""
        found = self._ask(lambda: self.files.get_file_info(self._path(key)), "read", key)
        return found.mtime_ns / 1e9 if found.is_file and found.mtime_ns else None

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError):
            self._ask(lambda: self.files.delete_file(self._path(key)), "delete", key)

    def delete_below(self, key: str) -> None:
        """Remove all that is below a folder."""
        with suppress(FileNotFoundError):
            self._ask(lambda: self.files.delete_dir(self._path(key)), "delete", key)

    def shown(self, key: str) -> str:
        """The URI of an object, for people."""
        return redact_uri(self.uri.place(key))

    def _list(self, key: str, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        def call() -> list[Any]:
            # fsspec remembers what it has listed
            getattr(getattr(self.files, "handler", None), "fs", _NoCache).invalidate_cache()
            selector = FileSelector(self._path(key), allow_not_found=True, recursive=recursive)
            return list(self.files.get_file_info(selector))

        try:
            return self._ask(call, "list", key)
        except FileNotFoundError:
            return []

    def _writing(self, key: str) -> Any:
        """A stream; folders are made where the storage has some."""
        path = self._path(key)
        try:
            return self.files.open_output_stream(path)
        except FileNotFoundError:
            self.files.create_dir(posixpath.dirname(path), recursive=True)
            return self.files.open_output_stream(path)

    def _path(self, key: str) -> str:
        return f"{self.base}/{key}" if key else self.base or "/"

    def _ask(self, call: Callable[[], T], what: str, key: str) -> T:
        began, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                return call()
            except (FileNotFoundError, StorageError):
                raise
            except Exception as error:  # of fsspec's stores each has its own
                left = began + self.wait_s - time.monotonic()
                said = f"storage: cannot {what} {self.shown(key)}: {_reason(error)}"
                if _is_refusal(error):
                    raise StorageError(said) from error
                if left <= 0:
                    raise StorageAway(said) from error
                logger.warning("%s; it is asked again", said)
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE_S)


@functools.cache
def open_bucket(authority: str) -> Objects:
    """A bucket by its URI; cheap after the first time in a process.

    Raises:
        StorageError: Nothing here speaks its scheme, or it cannot be reached.
    """
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem
    from pyarrow.lib import ArrowInvalid

    uri = StorageUri.parse(authority)
    shown = redact_uri(authority)
    try:
        try:
            files, base = FileSystem.from_uri(authority)
        except ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise
            import fsspec

            other, base = fsspec.url_to_fs(authority)
            files = PyFileSystem(FSSpecHandler(other))
    except ImportError as error:
        raise StorageError(f"storage: {shown} needs another package: {error}") from error
    except (OSError, ValueError, NotImplementedError) as error:
        raise StorageError(f"storage: {shown} cannot be opened: {_reason(error)}") from error
    return Objects(uri, files, base.rstrip("/"))


class _Local:
    """A file of this machine, whose errors are not the bucket's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Local:
        self._file = self._do(lambda: self._path.open("wb"))
        return self

    def write(self, chunk: bytes) -> None:
        self._do(lambda: self._file.write(chunk))

    def __exit__(self, *_: object) -> None:
        self._do(self._file.close)

    def _do(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            raise storage_error(self._path, error) from error


class _NoCache:
    @staticmethod
    def invalidate_cache() -> None: ...


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, PermissionError) or _REFUSED.search(str(error)) is not None


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return redact_uri(first)[:300]
