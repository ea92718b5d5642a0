"""Results on disk, and two of them side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowrank.benchmark.environment import differences
from lowrank.benchmark.phases import Work
from lowrank.errors import LowRankError
from lowrank.plain_json import write_json

SCHEMA_VERSION = 1


class DifferentFingerprints(LowRankError):
    """Figures of two machines, thread counts, dtypes or versions: their ratio means nothing."""


def save(result: dict[str, Any], path: Path | str) -> Path:
    """Write a result as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return path


def read(path: Path | str) -> dict[str, Any]:
    """A result that `save` wrote.

    Raises:
        LowRankError: It is no such file.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LowRankError(f"{path}: cannot be read: {error}") from error
    if not isinstance(result, dict) or result.get("schema_version") != SCHEMA_VERSION:
        raise LowRankError(f"{path}: no result of `lowrank bench`, schema {SCHEMA_VERSION}")
    missing = {"fingerprint", "settings", "subjects"} - result.keys()
    if missing:
        raise LowRankError(f"{path}: {sorted(missing)} are missing")
    return result


def compare(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that both results have, by subject, work, model and form.

    Args:
        first: What is compared with.
        second: What is compared.

    Returns:
        Medians of both in ms, and first over second: above 1 where the second is faster. They are
        of different runs, so there is no paired interval; a row that only one result has is listed
        with None for the other.

    Raises:
        DifferentFingerprints: The message names the fields.
        LowRankError: No row is in both.
    """
    found = differences(first["fingerprint"], second["fingerprint"])
    if found:
        raise DifferentFingerprints(
            "results of different fingerprints are not compared; they differ in " + "; ".join(found)
        )
    medians = [_medians(result) for result in (first, second)]
    if not medians[0].keys() & medians[1].keys():
        raise LowRankError("the two results have no subject and work in common")
    rows = []
    for key in dict.fromkeys([*medians[0], *medians[1]]):
        before, after = medians[0].get(key), medians[1].get(key)
        ratio = before / after if before is not None and after is not None else None
        names = dict(zip(("subject", "work", "side", "form"), key, strict=True))
        rows.append({**names, "first_ms": before, "second_ms": after, "ratio": ratio})
    return rows


def work_name(cell: dict[str, Any]) -> str:
    """What a cell was measured on."""
    return Work(cell["phase"], cell["batch"], cell["length"], cell["new_tokens"]).name


def _medians(result: dict[str, Any]) -> dict[tuple[str, str, str, str], float]:
    return {
        (subject["name"], work_name(cell), row["side"], row["form"]): row["median_ms"]
        for subject in result["subjects"]
        for cell in subject["cells"]
        for row in cell["rows"]
        if row["median_ms"] is not None
    }
