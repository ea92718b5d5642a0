"""Data sets of the `datasets` library: hub names, local folders and local builders."""

from __future__ import annotations

import sys
from typing import Any

from orchestrator.data.text_files import Row
from orchestrator.errors import DataError
from orchestrator.spec_tasks import HubDataset
from orchestrator.wording import listed

UNREACHABLE = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "MaxRetryError"}
"""Exceptions of huggingface_hub, httpx and urllib3 that are no built-in `ConnectionError`."""


def read_documents(data: HubDataset, split: str) -> list[str]:
    """The text of every row; each document ends with a line break.

    Args:
        data: What to load; one column of text.
        split: In the words of the `datasets` library: `train`, `train[:80%]`.

    Raises:
        DataError: When the split or the column does not exist, or a value is no text.
    """
    if len(data.text) != 1:
        raise DataError(f"language modelling reads one column of text, got {data.text}")
    table = _load(data, split)
    column = _column(data, table, data.text[0])
    for number, value in enumerate(column):
        if not isinstance(value, str):
            raise DataError(f"{_where(data, split)}, row {number}: no text, but {value!r:.100}")
    if not any(value.strip() for value in column):
        raise DataError(f"{_where(data, split)} has no text")
    return [value if value.endswith("\n") else value + "\n" for value in column]


def read_rows(data: HubDataset, split: str) -> tuple[list[Row], list[str] | None]:
    """The labelled rows, and the label names in the order that the data set declares, if any.

    Args:
        data: What to load; one or two columns of text, and a label.
        split: In the words of the `datasets` library.

    Raises:
        DataError: When the split or a column does not exist, or a text or label is missing.
    """
    table = _load(data, split)
    texts = [_column(data, table, name) for name in data.text]
    labels = _column(data, table, data.label)
    names = getattr(table.features[data.label], "names", None)
    rows = []
    for number, label in enumerate(labels):
        values = tuple(column[number] for column in texts)
        if not all(isinstance(value, str) for value in values):
            raise DataError(f"{_where(data, split)}, row {number}: no text, but {values!r:.100}")
        rows.append(Row(values, _label(data, split, number, label, names), f"row {number}"))
    if not rows:
        raise DataError(f"{_where(data, split)} has no rows")
    return rows, names


def _label(data: HubDataset, split: str, number: int, value: Any, names: list[str] | None) -> str:
    # -1 is how the hub marks rows whose label is kept secret
    if value is None or value == "" or (names and value == -1):
        raise DataError(f"{_where(data, split)}, row {number}: no label, but {value!r:.100}")
    return names[value] if names else str(value)


def _column(data: HubDataset, table: Any, name: str) -> list[Any]:
    if name not in table.column_names:
        raise DataError(
            f"data set {data.path!r}: column {name!r} is missing; "
            f"columns present: {listed(table.column_names)}"
        )
    return list(table[name])


def _load(data: HubDataset, split: str) -> Any:
    import datasets

    if not sys.stderr.isatty():  # in a log, a progress bar is one line per update
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(data.path, data.name, data_files=data.data_files, split=split)
    except Exception as error:  # builders run arbitrary code and raise anything
        if _is_unreachable(error):
            raise DataError(
                f"cannot load {_where(data, split)}: the hub cannot be reached (or offline mode "
                f"is set), and there is no such local folder or cached data set: {error}"
            ) from error
        raise DataError(
            f"cannot load {_where(data, split)}: {type(error).__name__}: {error}"
        ) from error


def _is_unreachable(error: BaseException | None) -> bool:
    seen = []
    while error is not None and error not in seen:
        if isinstance(error, ConnectionError) or type(error).__name__ in UNREACHABLE:
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _where(data: HubDataset, split: str) -> str:
    return f"data set {data.path!r}, split {split!r}"
