"""The list that makes a folder in a bucket whole: its files with size and SHA-256."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from lowrank.plain_json import parse_json
from orchestrator.bucket.objects import DamagedError
from orchestrator.records import RECORD

SEAL = ".sealed.json"
GROWING = (RECORD,)
"""Files that change after their folder is whole: not sealed, and always fetched again."""


def seal_of(folder: Path) -> Path:
    return folder.with_name(folder.name + SEAL)


def mark_of(folder: Path) -> Path:
    """Of a folder that goes when nobody reads it any more."""
    return folder.with_name(f".{folder.name}.borrowed")


def read_seal(shown: str, sealed: bytes) -> tuple[dict[str, Any], list[str]]:
    """Files with size and digest, and those that grow; names stay in their folder."""
    try:
        found = parse_json(sealed.decode())
        files, growing = found["files"], found["growing"]
        for name, expected in files.items():
            place = PurePosixPath(name)
            stays = not place.is_absolute() and ".." not in place.parts and "\0" not in name
            is_told = type(expected["size"]) is int and type(expected["sha256"]) is str
            if not (name and stays and is_told):
                raise ValueError(name)
        if not set(growing) <= set(GROWING):
            raise ValueError(growing)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{shown} is no list of files with their digests") from error
    return files, growing


def has_sizes(folder: Path, files: dict[str, Any]) -> bool:
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == expected["size"]
        for name, expected in files.items()
    )
