"""`search.warm_start`: how it is written, what it refuses, and that no key hangs on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.plan.work import task_work
from orchestrator.search import plan_trials
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec, json_schema, load_spec
from orchestrator.spec_warm import WarmStart
from tests.orchestrator.spec_texts import VALID, write_spec


def load(folder: Path, written: str | None, *overrides: str) -> CampaignSpec:
    text = VALID if written is None else VALID + f"  warm_start: {written}\n"
    return load_spec(write_spec(folder, text), overrides)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[first, second]", WarmStart(campaigns=["first", "second"])),
        ("{campaigns: [first]}", WarmStart(campaigns=["first"], top=1)),
        ("{campaigns: [first], top: 3}", WarmStart(campaigns=["first"], top=3)),
        ("null", None),
    ],
)
def test_ways_to_write_it(tmp_path: Path, written: str, read: WarmStart | None):
    spec = load(tmp_path, written)
    assert spec.search.warm_start == read
    assert load(tmp_path, None, f"search.warm_start={written}").search == spec.search
    again = write_spec(tmp_path, dump_spec(spec))
    assert load_spec(again).search == spec.search


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[]", "search.warm_start: must have at least 1 item, got []"),
        ("[first, first]", "search.warm_start: campaigns must differ, got ['first', 'first']"),
        ("[first, small-fleet]", "search.warm_start[1]: must name earlier campaigns, not this one"),
        ("[../first]", "search.warm_start[0]: must be 1 to 64 of a-z, 0-9, dot, dash"),
        ("[4]", "search.warm_start[0]: must be text, got 4"),
        ("first", "search.warm_start: must be a block of keys and values, got 'first'"),
        ("true", "search.warm_start: must"),
        (
            "{campaigns: [small-fleet]}",
            "search.warm_start.campaigns[0]: must name earlier campaigns",
        ),
        ("{top: 2}", "search.warm_start.campaigns: required key is missing"),
        ("{campaigns: [first], top: 0}", "search.warm_start.top: must be >= 1 and <= 1000, got 0"),
        ("{campaigns: [first], top: true}", "search.warm_start.top: must not be true or false"),
        (
            "{campaigns: [first], topp: 1}",
            "search.warm_start.topp: unknown key; did you mean `top`",
        ),
    ],
)
def test_what_is_wrong_is_told_where_it_stands(tmp_path: Path, written: str, message: str):
    with pytest.raises(SpecError) as error:
        load(tmp_path, written)
    assert f"spec.yaml:18: {message}" in str(error.value)


def test_specs_without_it_keep_their_digest_and_all_their_keys(tmp_path: Path):
    without, warm = load(tmp_path, None), load(tmp_path, "[first]")
    assert without.digest() == load(tmp_path, "null").digest() != warm.digest()
    assert "warm_start" not in str(without.model_dump(exclude_none=True))
    keys = [[plan.key for plan in plan_trials(s, s.tasks[0], "d")] for s in (without, warm)]
    assert keys[0] == keys[1], "as long as nothing was read"


def test_it_does_not_change_what_a_campaign_will_cost(tmp_path: Path):
    without, warm = load(tmp_path, None), load(tmp_path, "[first]", "search.sampler=gp")
    for index in range(2):
        counts = [task_work(s, s.tasks[index]).steps() for s in (without, warm)]
        assert counts[0] == counts[1]


def test_an_editor_knows_both_forms():
    forms = json_schema()["$defs"]["SearchSpec"]["properties"]["warm_start"]["anyOf"]
    assert {"type": "array", "items": {"type": "string"}, "minItems": 1} in forms
    assert {"$ref": "#/$defs/WarmStart"} in forms
