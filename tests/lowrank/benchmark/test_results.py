from __future__ import annotations

import json

import pytest

from lowrank.benchmark.results import DifferentFingerprints, compare, read, save
from lowrank.errors import LowRankError
from tests.lowrank.benchmark.results_factory import result


def test_a_result_survives_the_file(tmp_path):
    path = save(result(), tmp_path / "a" / "bench.json")
    assert read(path) == result()
    assert [p.name for p in path.parent.iterdir()] == ["bench.json"]


def test_what_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save(result(compressed_ms=float("nan")), tmp_path / "bench.json")
    assert not (tmp_path / "bench.json").exists()


def test_rows_of_both_runs_are_set_side_by_side():
    rows = {(row["side"], row["form"]): row for row in compare(result(6.0), result(4.0))}
    small = rows["compressed", "eager"]
    assert (small["first_ms"], small["second_ms"], small["ratio"]) == (6.0, 4.0, 1.5)
    assert rows["dense", "eager"]["ratio"] == 1.0
    assert ("compressed", "compiled") not in rows  # neither has a figure
    assert small["work"] == "forward 1 x 32"


def test_a_row_of_one_run_alone_is_listed():
    first, second = result(), result()
    second["subjects"][0]["cells"][0]["rows"].pop(2)
    rows = {(row["side"], row["form"]): row for row in compare(first, second)}
    assert rows["compressed", "folded"]["second_ms"] is None
    assert rows["compressed", "folded"]["ratio"] is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threads": 4}, "threads: 2 and 4"),
        ({"driver": "550.1"}, "driver: missing and 550.1"),
        ({"threads": 4, "dtype": "bfloat16"}, "dtype: float32 and bfloat16; threads: 2 and 4"),
    ],
)
def test_different_fingerprints_are_refused_by_field(fields, message):
    with pytest.raises(DifferentFingerprints, match=message):
        compare(result(), result(**fields))


def test_runs_without_a_common_row_are_refused():
    other = result()
    other["subjects"][0]["name"] = "another"
    with pytest.raises(LowRankError, match="in common"):
        compare(result(), other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no result of `lowrank bench`"),
        (json.dumps({"schema_version": 99}), "no result of `lowrank bench`"),
        (json.dumps({"schema_version": 1}), "'fingerprint', 'settings', 'subjects'"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(LowRankError, match=message):
        read(path)
    with pytest.raises(LowRankError, match="cannot be read"):
        read(tmp_path / "absent.json")
