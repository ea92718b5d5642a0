"""What stopping early saves and loses: hypervolume per compute.

    python -W ignore -m benchmarks.stopping --page docs/results/stopping.md

Curves of trials are gone through in one order by a number of workers, with nobody stopped, with
`search.stopping`, and with Ray Tune's ASHA, which knows one metric; the rules are the classes that
a campaign and Tune themselves use. The curves are those of a parametric model, and with `--folder`
those of a real campaign, which is trained there, with and without `search.stopping` (a quarter of
an hour on two cores; what is finished stays).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.stopping import campaign
from benchmarks.stopping.page import HEAD, Rows, section, synthetic, trained
from benchmarks.stopping.table import Table, figures
from benchmarks.stopping.ways import WAYS, compare

SETTINGS = {
    "0.4 and 0.8": [0.4, 0.8],
    "0.1, 0.2, 0.4 and 0.8": [0.1, 0.2, 0.4, 0.8],
}
"""Late rungs, as gates leave them, and those of a method without gates. Each is twice the one
before, as ASHA's are."""


def main() -> None:
    options = arguments()
    tables = [
        Table.make(options.trials, seed, options.correlation, options.noise)
        for seed in range(options.seeds)
    ]
    parts = []
    for name, rungs in SETTINGS.items():
        rows = gone_through(list(enumerate(tables)), rungs, options.workers)
        parts.append(section(name, tables[0], rows))
        print(parts[-1], flush=True)
    model = {"correlation": options.correlation, "noise": options.noise}
    made = synthetic(options.trials, options.workers, options.seeds, model, tables, parts)
    asked = shlex.join(["python", "-W", "ignore", "-m", "benchmarks.stopping", *sys.argv[1:]])
    texts = [HEAD.format(command=asked), made]
    if options.folder is not None:
        found = campaign.run(options.folder.absolute())
        orders = [(seed, found.table) for seed in range(options.orders)]
        rows = gone_through(orders, campaign.RUNGS, options.side_by_side)
        name = " and ".join(f"{rung:g}" for rung in campaign.RUNGS)
        part = section(name, found.table, rows)
        print(part, flush=True)
        texts.insert(1, trained(found, options.orders, options.side_by_side, part))
    if options.page is not None:
        options.page.write_text("".join(texts), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stopping",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trials", type=int, default=2400)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--correlation", type=float, default=0.6)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--folder", type=Path, help="storage of the real campaigns")
    parser.add_argument("--orders", type=int, default=100, help="of the real campaign's curves")
    parser.add_argument("--side-by-side", type=int, default=4, help="of the real campaign's curves")
    parser.add_argument("--page", type=Path)
    return parser.parse_args()


def gone_through(tables: Sequence[tuple[int, Table]], rungs: Sequence[float], workers: int) -> Rows:
    """Figures of the three ways through tables, each in the order of its seed."""
    rows: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for seed, table in tables:
        for way, found in compare(table, rungs, workers, seed).items():
            rows[way].append(figures(table, found))
    return rows


if __name__ == "__main__":
    main()
