"""Tables of labelled texts, for classes and for scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.data.prepare import prepare_data
from orchestrator.data.prepared import describe
from orchestrator.spec_tasks import Files
from tests.bad_inputs.case import BadInput, command
from tests.jobs.specs import write_spec
from tests.orchestrator.data.tasks import classification_task, opinions, regression_task, table

GROUP = "Tables"
LONG = "x" * 1_000_000
COLUMNS = "sentence\tlabel"
ROWS = [(f"{text} {n}", label) for n, (text, label) in enumerate(opinions(30))]


def _classes(what: str, content: str | bytes) -> BadInput:
    def made(folder: Path) -> None:
        write_spec(folder)
        whole = content if isinstance(content, bytes) else content.encode()
        (folder / "train.tsv").write_bytes(whole)

    return BadInput(
        group=GROUP,
        what=what,
        made=made,
        reader="lowrank compress spec.yaml",
        read=command("compress", "spec.yaml", "--task", "moods", "-o", "out"),
        status=2,
    )


def _three(what: str, kind: str, status: int, **tables: str) -> BadInput:
    """Three files, for what shows only beside the others."""
    make: Callable = classification_task if kind == "classes" else regression_task
    rows = ROWS if kind == "classes" else [(text, str(n % 6)) for n, (text, _) in enumerate(ROWS)]
    whole = {"train": rows[:20], "validation": rows[20:25], "test": rows[25:]}

    def made(folder: Path) -> None:
        for split, rows in whole.items():
            (folder / f"{split}.tsv").write_text(tables.get(split, table(*rows)), newline="")

    def read() -> str:
        files = Files(source="files", **{split: f"{split}.tsv" for split in whole})
        return (
            "read: " + describe(prepare_data(make(files), Path("cache"), None)).rpartition(" [")[0]
        )

    reader = f"prepare_data, {kind}"
    return BadInput(group=GROUP, what=what, made=made, reader=reader, read=read, status=status)


def _scores(label: str, *others: str) -> str:
    more = [(f"text {n}", other) for n, other in enumerate(others or ("1", "2", "3"))]
    return table(("a text", label), *more)


CASES = [
    _classes("empty", ""),
    _classes("a header only", table()),
    _classes("no header", table(*ROWS[1:], header="\t".join(ROWS[0]))),
    _classes("separated by commas", table(*ROWS).replace("\t", ",")),
    _classes("a missing text column", table(*ROWS, header="text\tlabel")),
    _classes("a missing label column", table(*ROWS, header="sentence\tclass")),
    _classes(
        "a column twice", table(*((*row, "x") for row in ROWS), header="sentence\tlabel\tlabel")
    ),
    _classes("a field too few", table(*ROWS, ("a text without label",))),
    _classes("a field too many", table(*ROWS, ("a text", "good", "why"))),
    _classes("a quoted cell with a tab", table(*ROWS, ('"one\ttwo"', "good"))),
    _classes("a quoted cell with a line break", table(*ROWS, ('"one\ntwo"', "good"))),
    _classes("an empty label", table(*ROWS, ("a text", " "))),
    _classes("one class", table(*((text, "good") for text, _ in ROWS))),
    _classes("numbers as classes", table(*((t, f"{n}.5") for n, (t, _) in enumerate(ROWS)))),
    _classes("NaN as class", table(*((t, ["nan", "1.5"][n % 2]) for n, (t, _) in enumerate(ROWS)))),
    _classes("every text empty", table(*((" ", label) for _, label in ROWS))),
    _classes("one row", table(ROWS[0])),
    _classes("a NUL byte", table(*ROWS, ("a \0 text", "good"))),
    _classes("invalid UTF-8", table(*ROWS).encode() + b"\xe9t\xe9\tgood\n"),
    _classes("a header of a million characters", LONG + table(*ROWS)),
    _classes("ten thousand columns", table(header="\t".join(map(str, range(10_000))))),
    _classes("a header that a terminal obeys", table(*ROWS, header="\x1b[2Jgone\tlabel")),
    _three("a label only in test", "classes", 2, test=table(*ROWS[25:], ("new text", "odd"))),
    _three(
        "a label of a million characters",
        "classes",
        2,
        test=table(*ROWS[25:], ("new", LONG)),
    ),
    _three("the same rows in train and test", "classes", 2, test=table(*ROWS[:20])),
    _three("a table as train and as test, no rows left", "classes", 2, test=table(*ROWS)),
    _three("a cell of a million characters", "classes", 0, test=table(("good " * 200_000, "good"))),
    _three("quotes that do not close", "classes", 0, test=table(('"a', "good"), ('b" "', "bad"))),
    _three("Windows line ends", "classes", 0, test=table(*ROWS[25:]).replace("\n", "\r\n")),
    _three("NaN as score", "scores", 2, train=_scores("nan")),
    _three("infinity as score", "scores", 2, validation=_scores("-inf")),
    _three("a score that is too large", "scores", 2, test=_scores("1e999")),
    _three("a word as score", "scores", 2, test=_scores("good")),
    _three("a decimal comma", "scores", 2, test=_scores("1,5")),
    _three("an empty score", "scores", 2, train=_scores("")),
    _three("equal scores", "scores", 2, train=_scores("1", "1", "1.0")),
]
