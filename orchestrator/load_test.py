"""Whether a logged model answers many requests, side by side and alike, as a server would ask it.

    python -m orchestrator.load_test FOLDER --requests 100

A process of its own, so that the model loads with the code that travels with it and nothing that
is here already. FOLDER is an MLflow model; what is asked is its own input example. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from orchestrator.errors import RegistryError

SIDE_BY_SIDE = 4
"""Threads that ask at once: enough to find what is not safe between threads, and two cores can
carry it."""


@dataclass(frozen=True, kw_only=True)
class LoadTest:
    """How a model stood it."""

    requests: int
    p50_ms: float
    p95_ms: float
    """Of one request, with the others beside it."""
    failure: str | None
    """Why the first request that failed did, or in what an answer differed; None if none did."""


def load_test(folder: Path, requests: int) -> LoadTest:
    """Ask a model in a fresh process.

    Args:
        folder: Of an MLflow model.
        requests: At least 1.

    Raises:
        RegistryError: The process ended without a result; with its last words.
    """
    command = [sys.executable, "-m", "orchestrator.load_test", str(folder)]
    done = subprocess.run(
        [*command, "--requests", str(requests)], capture_output=True, text=True, check=False
    )
    try:
        return LoadTest(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RegistryError(f"the load test ended with {done.returncode}: {said}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(asdict(_ask(options.folder, options.requests))))


def _ask(folder: Path, requests: int) -> LoadTest:
    import mlflow

    # the code that travels with the model is not even looked at if there is other
    assert "lowrank" not in sys.modules
    model = mlflow.pyfunc.load_model(str(folder))
    example = model.input_example
    if example is None:
        raise RegistryError(f"{folder} has no input example to ask")
    first = model.predict(example)

    def once(_: int) -> tuple[float, str | None]:
        began = time.perf_counter()
        try:
            answer = model.predict(example)
            failure = None if _alike(first, answer) else f"answered {answer!r}, at first {first!r}"
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        return time.perf_counter() - began, failure

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        found = list(pool.map(once, range(requests)))
    times = [1000 * seconds for seconds, _ in found]
    cuts = quantiles([*times, times[-1]], n=20, method="inclusive")
    return LoadTest(
        requests=requests,
        p50_ms=round(cuts[9], 3),
        p95_ms=round(cuts[18], 3),
        failure=next((failure for _, failure in found if failure), None),
    )


def _alike(first: Any, answer: Any) -> bool:
    """Equal words, and figures up to what the order of a sum on several threads can do."""
    if list(first.columns) != list(answer.columns) or len(first) != len(answer):
        return False
    for column in first.columns:
        one, other = first[column], answer[column]
        if one.dtype.kind == "f":
            if ((one - other).abs() > 1e-5 * (1 + one.abs())).any():
                return False
        elif not one.equals(other):
            return False
    return True


if __name__ == "__main__":
    main()
