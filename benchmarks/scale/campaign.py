"""A campaign with recorded trainings, as a process of its own: `lowrank run` in all else.

python -m benchmarks.scale.campaign SPEC RECORDING
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.scale.replay import Replay
from orchestrator.campaign import Campaign
from orchestrator.spec_io import load_spec


def main() -> None:
    path, recording = Path(sys.argv[1]), sys.argv[2]

    def say(text: str) -> None:
        print(text, flush=True)

    Campaign(load_spec(path), say, train=Replay(recording)).run()


if __name__ == "__main__":
    main()
