"""Labels: which classes there are, in which order they are numbered, that evaluation adds none;
and labels that are scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.data.text_files import Row
from orchestrator.errors import DataError
from orchestrator.wording import cut, listed


def label_names_of(train: Sequence[Row], declared: list[str] | None, origin: str) -> list[str]:
    """The names of the classes; a name's position is its number.

    Args:
        train: Rows that decide which classes there are.
        declared: Names in the order that the data set itself declares, kept as they are.
        origin: Where the rows come from, for errors.

    Returns:
        `declared`, or the labels in numeric order if all are integers, else in text order.

    Raises:
        DataError: When there are fewer than two classes, or the labels are measurements.
    """
    seen = {row.label for row in train}
    if len(seen) < 2:
        raise DataError(
            f"{origin}: labels must have at least 2 classes, got only {cut(min(seen))!r}"
        )
    if declared is not None:
        return declared
    if all(_is(int, label) for label in seen):
        return sorted(seen, key=lambda label: (int(label), label))
    if all(_is(float, label) for label in seen):
        example = min(label for label in seen if not _is(int, label))
        raise DataError(
            f"{origin}: labels must be classes, but they are numbers like {cut(example)}; "
            "`kind: regression` learns such scores"
        )
    return sorted(seen)


def check_known_labels(rows: Sequence[Row], train: Sequence[Row], what: str) -> None:
    """Refuse a label that training never shows.

    Raises:
        DataError: With the first such label, its place, and the labels of train.
    """
    known = {row.label for row in train}
    for row in rows:
        if row.label not in known:
            raise DataError(
                f"{what}, {row.where}: every label must occur in train, {cut(row.label)!r} "
                f"does not; labels of train: {listed(sorted(known))}"
            )


def scores_of(rows: Sequence[Row], what: str) -> list[float]:
    """The labels as numbers.

    Raises:
        DataError: With the first label that is no finite number, and its place.
    """
    scores = []
    for row in rows:
        score = float(row.label) if _is(float, row.label) else math.nan
        if not math.isfinite(score):
            raise DataError(
                f"{what}, {row.where}: the label must be a finite number, got {cut(row.label)!r}"
            )
        scores.append(score)
    return scores


def _is(number: type[int] | type[float], label: str) -> bool:
    try:
        number(label)
    except ValueError:
        return False
    return True
