"""Keeps a folder of this machine and its copy in a bucket in step, by names that are the same.

A folder in the bucket is *sealed*: beside it lies `NAME.sealed.json` with size and SHA-256 of each
of its files, written after all of them. Without a seal it is not there, whatever an upload that
was cut off left behind. What is fetched is compared with the seal before it gets its name here;
several processes of a machine fetch it once. Nothing is unpickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowrank.export import sha256_of
from orchestrator.bucket.folder import Mirror
from orchestrator.bucket.objects import WAIT_S, DamagedError, Objects
from orchestrator.bucket.seal import GROWING, SEAL, has_sizes, mark_of, read_seal, seal_of
from orchestrator.errors import storage_error
from orchestrator.records import RECORD

SIDE_BY_SIDE = 16
"""Small objects that are fetched at a time; each takes 10 to 100 ms, nearly all of it waiting."""
SMALL = ("spec.yaml", "result.json", "ray-job.json", "draws.json", "warm-start.json")
"""Files in a campaign's folder that whoever goes on with it needs before it begins."""
LOCKS = ".locks"


@dataclass(frozen=True)
class BucketMirror(Mirror):
    """Of a bucket.

    Every method raises `StorageError`, `StorageAway` or `DamagedError` (`objects`).
    """

    root: Path
    """Folder of this machine for the bucket; everything else is below it."""
    objects: Objects
    is_bucket = True

    @property
    def impatient(self) -> BucketMirror:
        """The same, for what must not be held up by a bucket that is away."""
        return replace(self, objects=replace(self.objects, wait_s=0.0))

    def key(self, path: Path) -> str:
        return "" if path == self.root else path.relative_to(self.root).as_posix()

    def place(self, path: Path) -> str:
        return self.objects.uri.place(self.key(path))

    def prove(self, root: Path) -> None:
        objects, key = self.impatient.objects, self.key(root / f".writable-{os.getpid()}")
        objects.write(key, b"x")
        objects.delete(key)

    def pull(self, root: Path) -> None:
        models = root / "models"
        sealed = {n.removesuffix(SEAL) for n in self._names(models) if n.endswith(SEAL)}
        for folder in models.iterdir() if models.is_dir() else []:
            if folder.is_dir() and folder.name not in sealed:
                self.drop(folder)  # the bucket has it no longer, or never had it as a whole
        small = [root / name for name in SMALL]
        small += [models / key / RECORD for key in sorted(sealed)]
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            list(pool.map(self.fetch_file, small))

    def push_folder(self, folder: Path, source: Path | None = None) -> None:
        source, seal = source or folder, seal_of(folder)
        is_known = source == folder and seal.exists()
        if is_known and self.objects.read(self.key(seal)) == seal.read_bytes():
            return  # as it was sent or fetched: what is large is not read again
        files = sorted(path for path in source.rglob("*") if path.is_file())
        names = [path.relative_to(source).as_posix() for path in files]
        growing = [name for name in names if name in GROWING]
        listed = {
            name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
            for name, path in zip(names, files, strict=True)
            if name not in growing
        }
        sealed = json.dumps({"files": listed, "growing": growing}, indent=1).encode()
        with self._locked(folder):
            there = self.objects.read(self.key(seal))
            if there is not None and there != sealed:
                # whoever fetches meanwhile must not take the new files for the old ones
                self.objects.delete(self.key(seal))
            for name in names:
                if there != sealed or name in growing:
                    self.objects.upload(source / name, self.key(folder / name))
            if there != sealed:
                self.objects.write(self.key(seal), sealed)
            if source == folder:
                seal.write_bytes(sealed)

    def fetch_folder(self, folder: Path) -> bool:
        with self._locked(folder):
            found = self._fetch(folder)
            mark_of(folder).unlink(missing_ok=True)
            return found

    @contextmanager
    def borrowed(self, folder: Path) -> Iterator[bool]:
        """A folder that is here within the block, and afterwards as before; whether there is one.

        Processes that borrow at the same time share what the first has fetched.
        """
        with self._lock_of(folder, "readers").open("w") as readers:
            with self._locked(folder):
                found = self._fetch(folder, mark_of(folder))
                fcntl.flock(readers, fcntl.LOCK_SH)
            try:
                yield found
            finally:
                # whoever reads it still has a part in the lock
                with self._locked(folder), suppress(BlockingIOError):
                    fcntl.flock(readers, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if mark_of(folder).exists():
                        self.drop(folder)

    def fetch_growing(self, folder: Path) -> bool:
        seal = self.key(seal_of(folder))
        sealed = self.objects.read(seal)
        if sealed is None:
            return False
        for name in read_seal(self.objects.shown(seal), sealed)[1]:
            self.fetch_file(folder / name)
        return True

    def push_file(self, path: Path) -> None:
        if path.exists():
            self.objects.upload(path, self.key(path))
        else:
            self.objects.delete(self.key(path))

    def fetch_file(self, path: Path) -> bool:
        draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
        _make(path.parent)
        try:
            if self.objects.download(self.key(path), draft) is None:
                path.unlink(missing_ok=True)
                return False
            draft.replace(path)
            return True
        finally:
            draft.unlink(missing_ok=True)

    def fetch_files(self, folder: Path) -> None:
        for name in self._names(folder):
            self.fetch_file(folder / name)

    def forget(self, folder: Path) -> None:
        with self._locked(folder):
            self.objects.delete(self.key(seal_of(folder)))
            self.objects.delete_below(self.key(folder))
            self.drop(folder)

    def leased(
        self, root: Path, campaign: str, say: Callable[[str], None]
    ) -> AbstractContextManager[None]:
        from orchestrator.bucket.lease import Lease

        return Lease(self.objects, self.key(root), campaign, root / ".lease", say)

    def driver(self, root: Path) -> str | None:
        from orchestrator.bucket.lease import holder

        return holder(self.objects, self.key(root))

    def campaigns(self, root: Path) -> list[str]:
        return self.objects.folders(self.key(root))

    def sealed_names(self, folder: Path) -> list[str]:
        """Of the folders directly in a folder that are whole in the bucket."""
        return [n.removesuffix(SEAL) for n in self._names(folder) if n.endswith(SEAL)]

    def _names(self, folder: Path) -> list[str]:
        return [n for n in self.objects.names(self.key(folder)) if not n.startswith(".")]

    def _fetch(self, folder: Path, mark: Path | None = None) -> bool:
        """Bring it here; leave a mark if it was not here before."""
        seal = seal_of(folder)
        sealed = self.objects.read(self.key(seal))
        if sealed is None:
            return False
        files, growing = read_seal(self.objects.shown(self.key(seal)), sealed)
        if not (seal.exists() and seal.read_bytes() == sealed and has_sizes(folder, files)):
            try:
                self._download(folder, files)
            except DamagedError:
                if self.objects.read(self.key(seal)) == sealed:
                    raise
                return self._fetch(folder, mark)  # it was written anew meanwhile
            seal.write_bytes(sealed)
            if mark is not None:
                mark.touch()
        for name in growing:
            self.fetch_file(folder / name)
        return True

    def _download(self, folder: Path, files: dict[str, Any]) -> None:
        draft = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        _make(draft)
        try:
            for name, expected in files.items():
                target, key = draft / name, self.key(folder / name)
                _make(target.parent)
                digest = self.objects.download(key, target, most=expected["size"])
                if digest != expected["sha256"]:
                    what = "is missing" if digest is None else "is not what was written"
                    raise DamagedError(f"{self.objects.shown(key)} {what}")
            self.drop(folder)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def drop(self, folder: Path) -> None:
        """Remove a folder here alone."""
        seal_of(folder).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        mark_of(folder).unlink(missing_ok=True)

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """One process of this machine at a time; a process that dies holds nothing."""
        _make(folder.parent)
        with self._lock_of(folder, "writer").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lock_of(self, folder: Path, what: str) -> Path:
        _make(self.root / LOCKS)
        name = hashlib.sha256(self.key(folder).encode()).hexdigest()[:16]
        return self.root / LOCKS / f"{name}.{what}"


def mirror_of(root: Path, objects: Objects) -> BucketMirror:
    """A mirror that waits for a bucket which is away."""
    return BucketMirror(root, replace(objects, wait_s=WAIT_S))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
