from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.data.text_files import Row, documents_of, read_table, read_text
from orchestrator.errors import DataError


def write(folder: Path, content: bytes) -> str:
    path = folder / "data"
    path.write_bytes(content)
    return str(path)


def read_rows(folder: Path, content: str) -> list[Row]:
    return read_table(write(folder, content.encode()), ["sentence"], "label")


def test_text_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_text(write(tmp_path, "é\r\na\rb\x1c\u2028\n".encode())) == "é\r\na\rb\x1c\u2028\n"
    assert read_text(write(tmp_path, b"\xef\xbb\xbfa")) == "a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"abc\xffdef", "must be UTF-8, but the byte 0xff at offset 3"),
        ("é".encode()[:1], "must be UTF-8, but the byte 0xc3 at offset 0"),
        (b"ab\0c", "must be text, but there is a NUL byte at offset 2"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_text(write(tmp_path, content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file: .*absent.txt"):
        read_text(str(tmp_path / "absent.txt"))
    with pytest.raises(DataError, match=r"cannot read .*: Is a directory"):
        read_text(str(tmp_path))


def test_many_paragraphs_are_documents() -> None:
    text = "\n".join(f"title {n}\nbody {n}\n \n" for n in range(10))
    documents = documents_of(text)
    assert len(documents) == 10
    assert documents[3] == "title 3\nbody 3\n\n"


def test_few_paragraphs_are_divided_into_lines() -> None:
    assert documents_of("a\nb\n\nc") == ["a\n", "b\n", "c\n"]


def test_quotes_and_carriage_returns_do_not_break_rows(tmp_path: Path) -> None:
    rows = read_rows(tmp_path, 'sentence\tlabel\n"open quote\t1\nwith\rreturn\u2028\t0\n')
    assert rows == [
        Row(('"open quote',), "1", "line 2"),
        Row(("with\rreturn\u2028",), "0", "line 3"),
    ]


def test_windows_line_ends(tmp_path: Path) -> None:
    rows = read_rows(tmp_path, "label\tsentence\r\n1\tone\r\n0\ttwo\r\n")
    assert [(row.texts, row.label) for row in rows] == [(("one",), "1"), (("two",), "0")]


def test_pairs_in_the_order_of_the_spec(tmp_path: Path) -> None:
    path = write(tmp_path, b"id\tfirst\tsecond\tlabel\n7\ta\tb\tyes\n")
    assert read_table(path, ["second", "first"], "label")[0].texts == ("b", "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\tlabel\na\t1\n", "column 'sentence' is missing; columns present: text, label"),
        ("sentence\tclass\na\t1\n", "column 'label' is missing; columns present: sentence, class"),
        ("sentence\tlabel\tlabel\n", "column 'label' occurs more than once"),
        ("sentence\tlabel\na\t1\nb\n", "line 3: every row must have 2 .* got 1"),
        ("sentence\tlabel\na\tb\t1\n", "line 2: every row must have 2 .* got 3"),
        ("sentence\tlabel\na\t1\n\nb\t0\n", "line 3: every row must have 2 .* got 1"),
        ("sentence\tlabel\na\t1\nb\t \n", r"line 3: the label \(column 'label'\) is empty"),
        ("sentence\tlabel\n\n", "has a header but no rows"),
    ],
)
def test_broken_tables(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path, content)


def test_text_cannot_be_the_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be text and label at once"):
        read_table(write(tmp_path, b"label\tb\nx\ty\n"), ["label"], "label")
