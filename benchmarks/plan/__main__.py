"""Two campaigns, planned and then run: how good is `lowrank plan`?

    python -m benchmarks.plan --folder FOLDER --page docs/results/plan.md

Each campaign of specs.py is planned by `lowrank plan`, run by `lowrank run`, and compared by
`lowrank plan --compare`, in processes of their own, as a person would. The page says planned and
actual, part by part; the exit status is 1 if the whole time is off by more than a quarter, or the
bytes by more than a tenth. A quarter of an hour on two cores with nothing beside it. FOLDER keeps
what a campaign wrote; one that is finished there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.plan.page import Planned, write_page
from benchmarks.plan.specs import SPECS

TIME, BYTES = 0.25, 0.10
"""Largest errors of the whole campaign's time and of its bytes, as issue 6 asks."""


def main() -> int:
    options = arguments()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    found = [
        planned_and_run(folder, name, text, options.with_ray)
        for name, text in SPECS.items()
        if not options.only or name in options.only
    ]
    command = shlex.join(["python", "-m", "benchmarks.plan", *sys.argv[1:]])
    write_page(options.page, found, command, TIME, BYTES)
    print(f"{options.page}: {len(found)} campaigns")
    missed = [line for each in found for line in each.missed(TIME, BYTES)]
    for line in missed:
        print(line)
    return 1 if missed else 0


def planned_and_run(folder: Path, name: str, text: str, with_ray: bool) -> Planned:
    """One campaign, in a storage of its own."""
    home = folder / name
    home.mkdir(exist_ok=True)
    spec = home / "spec.yaml"
    spec.write_text(text.format(storage=home / "storage"), encoding="utf-8")
    planned = home / "plan-printed.json"
    if not planned.exists():
        options = ["--with-ray"] if with_ray else []
        printed = lowrank("plan", spec, "--json", *options)
        planned.write_text(printed, encoding="utf-8")
        print(lowrank("run", spec))
    comparison = json.loads(lowrank("plan", spec, "--compare", "--json"))
    plan = json.loads(planned.read_text(encoding="utf-8"))
    return Planned(name=name, spec=text, plan=plan, comparison=comparison)


def lowrank(*words: object) -> str:
    """What the command prints; the progress goes to the terminal."""
    command = [sys.executable, "-m", "jobs", *map(str, words)]
    environment: dict[str, Any] = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}")
    return done.stdout


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True, help="storages of the campaigns")
    parser.add_argument("--page", type=Path, required=True, help="the page")
    parser.add_argument("--only", action="append", choices=list(SPECS), help="one of the campaigns")
    parser.add_argument(
        "--with-ray", action="store_true", help="measure the overhead too, by a short campaign"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
