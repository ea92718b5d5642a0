"""Whatever stands in a spec, it is read or refused with the rule, without traceback or flood."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import jobs
from orchestrator.errors import SpecError
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec, load_spec

SPECS = Path(jobs.__file__).parent / "specs"
WRONG: list[Any] = [
    *(None, True, -1, 0, 10**30, -(10**300), 1e308, float("nan"), float("inf"), "nan"),
    *("", "x" * 100_000, "a://" * 25_000, "ünï\u202e\u0000", "../../etc/passwd", "/", "~", "a\nb"),
    *([], {}, [[]], [None], {"a": 1}, ["x"] * 5000, {"k" * 1000: 1}, [1, "a", None]),
    *({"log_uniform": [0, 1]}, {"uniform": [2, 1]}, {"uniform": ["a", "b"]}, {"uniform": [1]}),
    *("quality_drop <= nan%", "speedup >= 1e999 @ batch 32", "latency_ms <= 5 @ batch -1"),
    *("*", "[", "(", "**", "${HOME}", "{{x}}", "!!python/object:os.system", "0x10", "1_000"),
]
TRIES = 1
"""Values per field, drawn; all of them take ten minutes."""
LONGEST = 30_000
"""Characters of a message: fifty problems, each a few lines."""

Place = tuple[Any, ...]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Of every field, block and item."""
    yield place
    inner = value.items() if isinstance(value, dict) else []
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, each in inner:
        yield from places(each, (*place, key))


def put(spec: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    spec = copy.deepcopy(spec)
    at = spec
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return spec


def problems_of(path: Path) -> list[str]:
    """Empty for a spec that is read; any other error than ours is raised."""
    try:
        load_spec(path)
    except SpecError as error:
        return error.problems or [""]
    return []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo.yaml", "encoders.yaml"])
def test_every_field_takes_every_value(name: str, tmp_path: Path):
    whole = as_written(load_spec(SPECS / name))
    assert refused(whole, list(places(whole)), random.Random(name), tmp_path) > 75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (
            "demo.yaml",
            [
                "search.trials_per_density=8",
                "search.stopping={rungs: [0.5]}",
                "tasks.docs-lm.evaluate_every=100",
                "method.gated_fraction=0.3",
                "search.warm_start={campaigns: [before]}",
            ],
        ),
        ("ladder.yaml", []),
    ],
    ids=["stopping", "ladder"],
)
def test_so_do_the_blocks_that_few_searches_have(name: str, overrides: list[str], tmp_path: Path):
    whole = as_written(load_spec(SPECS / name, overrides))
    of_search = [place for place in places(whole) if place[:1] == ("search",)]
    assert refused(whole, of_search, random.Random(name), tmp_path) > 15


def as_written(spec: CampaignSpec) -> dict[str, Any]:
    """Every field of it, given or not."""
    return dict(json.loads(json.dumps(yaml.safe_load(dump_spec(spec)))))


def refused(whole: dict[str, Any], at: list[Place], draw: random.Random, folder: Path) -> int:
    """In how many of those places a wrong value was refused."""
    path, count = folder / "spec.yaml", 0
    for place in at:
        for value in draw.sample(WRONG, TRIES):
            text = yaml.safe_dump(put(whole, place, value), allow_unicode=True)
            path.write_text(text, encoding="utf-8")
            problems = problems_of(path)
            count += bool(problems)
            assert len("".join(problems)) < LONGEST, (place, str(value)[:50])
            assert all(problems), (place, value)
    return count
