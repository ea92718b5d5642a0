"""A campaign to which faults happen, beside one that was left alone.

    python -m benchmarks.faults --folder FOLDER --out docs/results/faults.md

First the campaign of campaign.yaml runs undisturbed. Then it runs under another name while faults
of every kind of kinds.py happen at random times, until there were as many as asked for; a campaign
that is over before that begins anew, under a third name. What is stopped is started again by the
same command, as an operator would. At the end nothing may be lost, doubled or different: the page
says what was found, and the exit status is 1 if it was anything.

An hour on two free cores; PostgreSQL and the extra `postgres` must be installed. What befalls a
disk needs root, and the folder on a small file system of its own:

    truncate -s 2G IMAGE; mkfs.ext4 -q IMAGE; mount -o loop IMAGE FOLDER

(`mount -t tmpfs -o size=2g tmpfs FOLDER` does for all of it but the frozen one.)
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
from pathlib import Path

from benchmarks.faults.injector import Injector
from benchmarks.faults.ledger import Ledger, compare
from benchmarks.faults.machines import Machines
from benchmarks.faults.page import write_page

SPEC = Path(__file__).with_name("campaign.yaml")
UNDISTURBED, DISTURBED = "undisturbed", "faults"


def main() -> int:
    options = arguments()
    # Ray's nodes must not outlive this
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    machines = Machines(folder)
    ledger = Ledger(folder / "ledger.jsonl")
    try:
        wall_s = undisturbed(machines, folder)
        injector = Injector(machines, folder, ledger, options.seed, options.mean_seconds)
        found = []
        while len(ledger.faults) < options.faults:
            name = f"{DISTURBED}-{len(found) + 1}"
            took = injector.campaign(command(folder, machines, name), options.faults)
            found.append(compare(folder, UNDISTURBED, name, took, machines.server.uri))
    finally:
        machines.close()
    asked = shlex.join(["python", "-m", "benchmarks.faults", *sys.argv[1:]])
    write_page(options.out, ledger, found, asked, wall_s)
    print(f"{options.out}: {len(ledger.faults)} faults in {len(found)} campaigns")
    problems = [problem for each in found for problem in each.problems]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def undisturbed(machines: Machines, folder: Path) -> float:
    """Seconds that it took; kept, for it is the same for every seed of the faults."""
    took = folder / "undisturbed.json"
    if took.exists():
        return float(json.loads(took.read_text())["seconds"])
    began = time.monotonic()
    machines.start_driver(command(folder, machines, UNDISTURBED))
    assert machines.driver is not None
    code = machines.driver.wait()
    if code != 0:
        raise SystemExit(f"the undisturbed campaign ended with {code}: {machines.log}")
    seconds = time.monotonic() - began
    took.write_text(json.dumps({"seconds": seconds}))
    return seconds


def command(folder: Path, machines: Machines, name: str) -> list[str]:
    return [
        *("run", str(SPEC)),
        *("--set", f"name={name}"),
        *("--set", f"storage={folder / 'runs'}"),
        *("--set", f"tracking.uri={machines.server.uri}"),
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True, help="results and logs go there")
    parser.add_argument("--out", type=Path, required=True, help="the page")
    parser.add_argument("--faults", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--seed", type=int, default=1, help="of kinds, times and victims")
    parser.add_argument(
        "--mean-seconds",
        type=float,
        default=20.0,
        help="between two faults; they come at random (default: 20, a short training)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
