"""All bad inputs, and the page that shows what is said of each."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tests.bad_inputs import corpora, exports, names, pretrained, search, storage, tables
from tests.bad_inputs.case import BadInput, Outcome

PAGE = Path(__file__).parent.parent.parent / "docs" / "results" / "bad-inputs.md"
CASES: list[BadInput] = [
    *corpora.CASES,
    *tables.CASES,
    *pretrained.CASES,
    *exports.CASES,
    *storage.CASES,
    *search.CASES,
    *names.CASES,
]
CUT = 300
"""Characters of a message on the page."""
HEAD = f"""# Bad inputs and what is said of them

Written by `python -m tests.bad_inputs` from the list in `tests/bad_inputs/`: every row is an input
that is made, read, and checked by a test. The test fails if another message or exit status comes,
if an error is none of this package's own, or if a file has changed that was there before. Specs
have tests of their own (`tests/orchestrator/test_spec_fuzz.py`); damage at random places is in
`tests/bad_inputs/test_fuzz_*.py`.

A status is that of the command. Where a function is named, its error has the status that a command
would end with. Status 0 is an input that looks bad and is read. The folder of the input is left out
of messages, and messages are cut after {CUT} characters.
"""


def page(outcomes: list[tuple[BadInput, Outcome]]) -> str:
    """The whole of it."""
    parts = [HEAD]
    for group, several in groupby(outcomes, key=lambda pair: pair[0].group):
        parts.append(f"\n## {group}\n\n| input | read by | status | message |\n|---|---|---|---|\n")
        parts += [row(case, found) for case, found in several]
    return "".join(parts)


def row(case: BadInput, found: Outcome) -> str:
    """One line of a table."""
    message = found.message if len(found.message) <= CUT else found.message[:CUT] + "..."
    cells = [case.what, f"`{case.reader}`", str(found.status), _escaped(message)]
    return "| " + " | ".join(cells) + " |\n"


def _escaped(text: str) -> str:
    """As Markdown shows it: nothing in a message is a mark."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    for mark in "\\`*_{}[]<>|~#":
        text = text.replace(mark, "\\" + mark)
    return text
