"""How a campaign's own cost grows from 10 to 100 to 1,000 trials.

    python -m benchmarks.scale --page docs/results/scale.md

Records the trainings of one dense model and of one compressed model per density, once. Then runs,
for every size, a campaign that tells them again instead of training, on an MLflow server with
PostgreSQL that it starts itself, and writes the page with its plot. A size that is measured is not
measured again: its figures are in WORK/N.json. One that was stopped begins anew, for its wall time
is of one run.

On two free cores the three sizes should take an hour to an hour and a half, nearly all of it the
largest one. Needs the extra `postgres`, PostgreSQL's programs, some 6 GiB of memory and 2 MiB of
disk per trial; run it from the repository's root.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.scale.measure import SERVER_WORKERS, Figures, measure

WORK = Path("runs") / "scale"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], metavar="TRIALS")
    parser.add_argument("--side-by-side", type=int, default=4, help="trials; 0.6 GiB each")
    parser.add_argument("--work", type=Path, default=WORK, help="recordings, logs and figures")
    parser.add_argument("--page", type=Path, help="the Markdown to write, and the plot beside it")
    arguments = parser.parse_args()
    # the servers that were started are ended then, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    work = arguments.work.absolute()
    found = []
    for trials in sorted(arguments.sizes):
        kept = work / f"{trials}.json"
        if not kept.exists():
            figures = measure(
                work / str(trials), work / "recording", trials, arguments.side_by_side
            )
            kept.write_text(json.dumps(asdict(figures), indent=1), encoding="utf-8")
        found.append(Figures(**json.loads(kept.read_text(encoding="utf-8"))))
        print(f"{trials} trials: {found[-1].wall_s:.0f} s", flush=True)
    if arguments.page is not None:
        from benchmarks.scale.page import write_page

        write_page(found, arguments.page, SERVER_WORKERS, arguments.side_by_side)
        print(arguments.page)


if __name__ == "__main__":
    main()
