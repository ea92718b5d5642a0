from __future__ import annotations

import pytest

from lowrank.benchmark.results import compare
from lowrank.benchmark.tables import (
    all_tables,
    comparison_table,
    layer_table,
    mark,
    operator_table,
    page,
    resource_table,
    speed_table,
)
from tests.lowrank.benchmark.results_factory import result


def subject():
    return result()["subjects"][0]


def test_what_is_not_faster_is_shown_and_marked():
    rows = {tuple(row[1:3]): row for row in speed_table(subject()).rows}
    assert rows["dense", "eager"][3:6] == ["10.00", "3,200", "1.00x"]
    assert rows["dense", "eager"][-1] == ""
    figures = ["5.00", "6,400", "2.00x", "1.90-2.10", "2.50x", "80%", "", ""]
    assert rows["compressed", "eager"][3:] == figures
    assert rows["compressed", "folded"][-1] == "no speed-up"
    assert rows["compressed", "int8"][-2:] == ["1.0e-02", "slower"]
    assert rows["compressed", "compiled"][-1] == "not available: no compiler"
    assert rows["best of both", "eager against dense eager"][5:9] == [
        "2.00x", "1.90-2.10", "2.50x", "80%",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(1.01, 1.2, ""), (1.0, 1.2, "no speed-up"), (0.9, 1.0, "no speed-up"), (0.8, 0.99, "slower")],
)
def test_a_mark_looks_at_the_whole_interval(low, high, text):
    assert mark({"median": 1.1, "low": low, "high": high}) == text


def test_layers_and_the_rest_of_the_pass():
    table = layer_table(subject(), subject()["cells"][0])
    (row,) = table.rows
    assert row[:7] == ["16 x 32", "low-rank", "4", "12", "32", "0.500", "0.250"]
    assert row[7:] == ["0.80x", "0.70-0.90", "2.50x", "32%", "slower"]
    assert "dense: 10.00 ms, of which 5.00 ms (50%) outside" in table.note


def test_operators_of_both_models_share_rows():
    table = operator_table(subject(), subject()["cells"][0])
    assert table.rows[:2] == [["aten::addmm", "70.0%", ""], ["aten::mm", "", "70.0%"]]
    assert table.rows[-1] == ["all of other", "20.0%", "20.0%"]


def test_resources_are_in_mebibytes():
    rows = resource_table(subject()).rows
    assert rows[0] == ["dense", "2.0", "0.50", "1.0", "3.0", "4.0", "", ""]
    assert rows[1] == ["compressed int8", "", "", "", "", "", "", "no kernels"]


def test_rows_are_as_wide_as_their_headings():
    tables = [*all_tables(result()), comparison_table(compare(result(), result()))]
    assert len(tables) == 5
    for table in tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.headings)}


def test_a_page_says_where_it_was_measured():
    text = page(result(), "Speed")
    assert text.startswith("# Speed\n\nMeasured with: cpu X; threads 2; dtype float32.")
    assert "Median of 9 interleaved rounds" in text
    assert text.count("\n### ") == 4
    lines = [line for line in text.splitlines() if line.startswith("| forward")]
    assert len(lines) == 6
    assert {line.count("|") for line in lines} == {12}
    assert "### a|b: speed" in text
