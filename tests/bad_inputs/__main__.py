"""Writes docs/results/bad-inputs.md, or checks it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.bad_inputs.case import outcome
from tests.bad_inputs.page import CASES, PAGE, page


def main() -> int:
    outcomes = []
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="lowrank-bad-") as folder:
            outcomes.append((case, outcome(case, Path(folder).resolve())))
    text = page(outcomes)
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            print(f"{PAGE.name} is out of date: python -m tests.bad_inputs", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
