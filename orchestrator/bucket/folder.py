"""What a campaign asks of its storage, and how a folder that all machines see answers.

Of a bucket it is `mirror`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path


class Mirror:
    """Of storage that is a folder: all see the same files, and nothing has to be done."""

    is_bucket = False

    def place(self, path: Path) -> str:
        """What other machines call a path: itself."""
        return str(path)

    def prove(self, root: Path) -> None:
        """Make sure that something can be written and removed."""

    def pull(self, root: Path) -> None:
        """Bring a campaign's small files here, in place of older ones."""

    def push_folder(self, folder: Path, source: Path | None = None) -> None:
        """Send a folder that is whole, or what `source` holds under its name."""

    def fetch_folder(self, folder: Path) -> bool:
        """Bring a folder here; whether there is one."""
        return folder.is_dir()

    def fetch_growing(self, folder: Path) -> bool:
        """Bring no more of a folder than what changes when it is whole; whether it is."""
        return folder.is_dir()

    def push_file(self, path: Path) -> None:
        """Send a file as it is here; one that is gone here goes there."""

    def fetch_file(self, path: Path) -> bool:
        """Bring a file here; whether there is one."""
        return path.exists()

    def fetch_files(self, folder: Path) -> None:
        """Bring the files directly in a folder here."""

    def forget(self, folder: Path) -> None:
        """Remove a folder here and there."""
        shutil.rmtree(folder, ignore_errors=True)

    def leased(
        self, root: Path, campaign: str, say: Callable[[str], None]
    ) -> AbstractContextManager[None]:
        """Keep drivers on other machines out; a folder's lock does that by itself."""
        return nullcontext()

    def campaigns(self, root: Path) -> list[str]:
        """Names of the folders of a storage, sorted: campaigns, and what they share."""
        return sorted(path.name for path in root.glob("*") if path.is_dir())

    def driver(self, root: Path) -> str | None:
        """Who holds the lease."""
        return None
