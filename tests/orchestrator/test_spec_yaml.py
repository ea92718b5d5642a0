"""YAML text to plain values: numbers, text that looks like something else, lines, attacks."""

from __future__ import annotations

import json
import sys
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec_yaml import MAX_BYTES, dump, parse, read_document

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
FINITE = SCALARS.filter(lambda value: value not in (float("inf"), float("-inf")))
VALUES = st.recursive(
    FINITE, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=12
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2E3", 2000.0),
        ("1.5e+2", 150.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-2e-3", -0.002),
        ("+3", 3),
        ("1_000", 1000),
        ("true", True),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x1f", "0x1f"),
        ("1e3x", "1e3x"),
        ("'1e3'", "1e3"),
        ("!!str 7", "7"),
        ("=", "="),
    ],
)
def test_scalars(text, value):
    found = parse(f"key: {text}", "f").data["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: .inf", "f:2: must be a finite number, got .inf"),
        ("a: 1e999", "f:1: must be a finite number, got 1e999"),
        ("a: " + "9" * 5000, "f:1: must be a number, got 9999"),
        ("a: !!int x", "f:1: must be a number, got x"),
        ("a: !!python/object:os.system x", "f:1: the tag !!python/object:os.system is not"),
        ("a: !thing {b: 1}", "f:1: the tag !thing is not supported"),
        ("a: !!set {b}", "f:1: the tag !!set is not supported"),
        ("a: !!bool maybe", "f:1: the tag !!bool is not supported"),
        ("a: 1\nb: 2\na: 3", "f:3: key `a` is given twice, first in line 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "f:4: key `b` is given twice, first in line 2"),
        ("{1: a}", 'f:1: keys must be text, got 1 (write "1")'),
        ("? [a]\n: b", "f:1: keys must be text, got a block"),
        ("a: 1\nb: c: d", "f:2: not valid YAML: mapping values are not allowed here"),
        ("a:\n\tb: 1", "indent with spaces, not with tabs), column 1"),
        ("a: [1, 2", "f:1: not valid YAML: expected ',' or ']'"),
        ("a: *b", "f:1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2", "f:2: not valid YAML: expected a single document"),
        ("a: 1\nb: \x00", "f:2: not valid YAML: special characters are not allowed"),
        ('a: "\\U00110000"', "f: not valid YAML"),
        ('a: "\\ud800"', "f:1: must be text without halves of surrogate pairs"),
        ("a: {<<: 3}", "f:1: `<<` merges blocks of keys and values only"),
        ("a: &a [*a]", "must not nest deeper than 40"),
        ("a: &a {<<: *a}", "must not nest deeper than 40"),
        ("[" * 500, "f:1: blocks must not nest deeper than 40"),
        (
            "a:\n" + "".join(" " * n + "- \n" for n in range(60)),
            "f:42: blocks must not nest deeper",
        ),
        ("[" * 60 + "]" * 60, "f:1: blocks must not nest deeper than 40"),
    ],
)
def test_refused(text, message):
    with pytest.raises(SpecError) as caught:
        parse(text, "f")
    assert message in str(caught.value)


def test_the_depth_does_not_hang_on_the_interpreters_limit():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        with pytest.raises(SpecError, match="f:1: blocks must not nest deeper than 40"):
            parse("[" * 500, "f")
    finally:
        sys.setrecursionlimit(limit)


def test_the_deepest_spec_that_may_be_is_read():
    assert parse("[" * 40 + "]" * 40, "f").data == json.loads("[" * 40 + "]" * 40)
    with pytest.raises(SpecError, match="deeper than 40"):
        parse("[" * 42 + "]" * 42, "f")


def test_every_duplicate_is_listed_in_order():
    with pytest.raises(SpecError) as caught:
        parse("a: 1\nb: {c: 1, c: 2}\na: 2", "f")
    assert [p.split(":")[1] for p in caught.value.problems] == ["2", "3"]
    assert caught.value.line == 2


def test_a_billion_laughs_end_quickly():
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]
    start = time.monotonic()
    with pytest.raises(SpecError, match="more than 100000 values, aliases expanded"):
        parse("\n".join(["l0: &l0 [1]", *levels]), "f")
    assert time.monotonic() - start < 10


def test_aliases_are_copies():
    data = parse("a: &a {x: [1]}\nb: *a", "f").data
    assert data["a"] == data["b"]
    assert data["a"]["x"] is not data["b"]["x"]


def test_merge_keys():
    text = "a: &a {p: 1, q: {r: 1}}\nb:\n  <<: *a\n  q: 3\nc: {<<: [*a, {p: 2, s: 4}]}"
    document = parse(text, "f")
    assert document.data["b"] == {"p": 1, "q": 3}
    assert document.data["c"] == {"p": 1, "q": {"r": 1}, "s": 4}
    assert document.line(("b", "q")) == 4
    assert document.line(("b", "p")) == 1
    assert ("b", "q", "r") not in document.origins


def test_places_have_lines():
    document = parse("a: 1\nb:\n  - x\n  - c: 2\n    d:\n      - 3\n", "f")
    assert document.locate(("b", 1, "d", 0)) == "f:6"
    assert document.locate(("b", 1, "d")) == "f:5"
    assert document.locate(("b", 1, "absent")) == "f:4"
    assert document.locate(("absent",)) == "f:1"


@settings(deadline=None)
@given(st.dictionaries(TEXT, VALUES))
def test_dump_round_trip(data):
    assert parse(dump(data), "f").data == (data or {})


@settings(deadline=None)
@given(TEXT)
def test_other_readers_see_the_same_text(text):
    """What is dumped is text to a YAML 1.1 reader too, `no` and `1:30` included."""
    assert yaml.safe_load(dump({"key": text})) == {"key": text}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "spec.yaml: the file is empty"),
        (b"# only a comment\n", "spec.yaml: the file is empty"),
        (b"- a\n", "spec.yaml:1: a spec must be a block of keys and values, got a list"),
        (b"word\n", "spec.yaml:1: a spec must be a block of keys and values, got a single"),
        (b"a: 1\nb: \xff\n", "spec.yaml:2: must be UTF-8, got byte 0xff"),
        ("a: ü".encode("utf-16"), "spec.yaml:1: must be UTF-8"),
        (b"#" * (MAX_BYTES + 1), "spec.yaml: a spec must not exceed 1000000 bytes"),
    ],
)
def test_files_that_are_no_spec(tmp_path, content, message):
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        read_document(path)
    assert message in str(caught.value)


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(SpecError, match=r"none\.yaml: file not found"):
        read_document(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="is a folder, a YAML file is expected"):
        read_document(tmp_path)
    with pytest.raises(SpecError, match="cannot be read"):
        read_document(tmp_path / "spec.yaml" / "\0")
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match="cannot be read: Not a directory"):
        read_document(tmp_path / "file" / "spec.yaml")


def test_byte_order_mark_and_windows_lines(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_bytes("\ufeffa: 1\r\nb: ü\r\n".encode())
    assert read_document(path).data == {"a": 1, "b": "ü"}
