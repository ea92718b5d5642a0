"""Results of campaigns that are not finished, and which runs belong to them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import CampaignError
from tests.orchestrator.results.pages import (
    facts_of,
    read,
    section,
    tables,
    write,
)
from tests.orchestrator.results_factory import (
    FakeReader,
    make_spec,
)


class TestUnfinished:
    def test_nothing_but_the_parent(self, tmp_path: Path):
        page = write(read(FakeReader(make_spec(), unfinished=["all"])), tmp_path)
        assert re.findall(r"^## (.*)", page, re.MULTILINE) == ["Setting", "Failed and missing"]
        (rows,) = tables(section(page, "Failed and missing"))
        # three and two draws, and the methods without any choice run at once
        counts = [
            int(re.match(r"(\d+) trials$", row[""])[1]) if " trials" in row[""] else 1
            for row in rows
        ]
        assert sum(counts) == 7
        assert len({row["method"] for row in rows}) == len(rows)
        assert {row["state"] for row in rows} == {"not started"}
        assert "32 trials of later rounds" in page
        assert dict((r[""], t) for r, t in facts_of(page))["trials"] == "0 finished, 39 missing"

    def test_part_of_the_draws(self, no_plots: None, tmp_path: Path):
        spec = make_spec()
        draws = FakeReader(spec, unfinished=["all"]).plans()
        late = next(p for p in draws if p.method_name == "adaptive")
        results = read(FakeReader(spec, unfinished=[late.key]))
        page = write(results, tmp_path)
        assert set(results.runs()["adaptive"]) == {0.25}, (
            "no density has the best draw's values yet"
        )
        (row,) = tables(section(page, "Failed and missing"))[0]
        assert (row["method"], row["density"], row["seed"]) == ("adaptive", "0.25", "7")
        assert "8 trials of later rounds" in page
        assert "not started" in section(page, "Tuning")
        quality = tables(section(page, "Quality"))[0][0]
        assert (quality["density 0.5"], quality["density 0.1"]) == ("-", "-")
        assert "(1)" in quality["density 0.25"]

    def test_draws_that_were_stopped_early(self, no_plots: None, tmp_path: Path):
        search = make_spec().search.model_dump(exclude_none=True)
        stopping = {"at_least": 2, "rungs": [0.5]}
        spec = make_spec(search=search | {"stopping": stopping}, method={"steps": 1000})
        draws = FakeReader(spec, unfinished=["all"]).plans()
        late = [p for p in draws if p.method_name == "adaptive"][-1]
        reader = FakeReader(spec, failed={late.key: "place 4 of 5"})
        reader.logged = [
            replace(
                run,
                status="KILLED",
                tags=run.tags
                | {"stopped": "place 4 of 5", "stopped.rung": "0.5", "stopped.step": "600"},
            )
            if run.key == late.key
            else run
            for run in reader.logged
        ]
        results = read(reader)
        (trial,) = results.result.stopped
        assert (trial.key, trial.rung, trial.saved_steps) == (late.key, 0.5, 400)
        assert not results.result.failed
        assert set(results.runs()["adaptive"]) == {0.5, 0.25, 0.1}, "repeats were planned"
        page = write(results, tmp_path)
        (row,) = tables(section(page, "Failed and missing"))[0]
        assert (row["state"], row[""]) == ("stopped at rung 0.5", "place 4 of 5")
        assert "stopped" in section(page, "Tuning")
        facts = dict((r[""], t) for r, t in facts_of(page))
        assert "1 stopped early (1 at rung 0.5), 400 steps saved" in facts["trials"]

    def test_the_state_of_a_run_is_told(self):
        reader = FakeReader(make_spec())
        states = {}
        for index, status in ((2, "RUNNING"), (3, "KILLED"), (4, "FINISHED")):
            run = reader.logged[index]
            reader.logged[index] = replace(run, status=status)
            reader.records.pop(run.key)
            states[run.key] = status
        told = {plan.key: words for plan, words in read(reader).missing}
        words = {"RUNNING": "running", "KILLED": "stopped", "FINISHED": "its record cannot be read"}
        assert {key: words[status] for key, status in states.items()}.items() <= told.items()

    def test_failures_have_their_reason_and_no_places(self, no_plots: None, tmp_path: Path):
        spec = make_spec()
        key = next(p.key for p in FakeReader(spec).plans() if p.method_name == "uniform")
        reason = "OSError: no space | in /home/ada/runs/x\nby ada@host.example at 10.0.0.3:6379"
        page = write(read(FakeReader(spec, failed={key: reason})), tmp_path)
        (row,) = tables(section(page, "Failed and missing"))[0]
        assert row["state"] == "failed"
        assert row[""] == r"OSError: no space \| in …/x by … at …"
        assert "38 finished" not in page
        assert "1 failed" in dict((r[""], t) for r, t in facts_of(page))["trials"]

    def test_no_parent(self):
        reader = FakeReader(make_spec())
        reader.logged = []
        with pytest.raises(
            CampaignError, match="dense reference of task 'letters' is not finished"
        ):
            read(reader)


class TestMatching:
    def test_runs_that_the_spec_does_not_ask_for_are_left_out(self, reader: FakeReader):
        spec = make_spec(search=make_spec().search.model_dump() | {"density": [0.5, 0.25]})
        results = read(reader, spec)
        assert len(results.finished) == 27
        assert results.left_out == 12
        assert results.matched == 0

    def test_other_keys_and_the_same_settings(self, no_plots: None, tmp_path: Path):
        reader = FakeReader(make_spec())
        records = {}
        for index, run in enumerate(reader.logged):
            params = {k: v for k, v in run.params.items() if k != "method.floor_fraction"}
            reader.logged[index] = replace(run, key=f"old-{run.key}", params=params)
            if run.key in reader.records:
                records[f"old-{run.key}"] = reader.records[run.key]
        reader.logged[0] = replace(reader.logged[0], key="task:letters")
        reader.records = records
        results = read(reader)
        assert (len(results.finished), results.missing, results.left_out) == (39, [], 0)
        for plan in results.plans:
            assert results.finished[plan.key].config == plan.method.model_dump(mode="json")
            assert results.finished[plan.key].seed == plan.seed
        assert "40 runs found by settings, not by key" in write(results, tmp_path)

    @pytest.mark.parametrize("name", ["method.learning_rate", "seed", "data_hash", "dense.steps"])
    def test_other_settings_do_not_match(self, name: str):
        reader = FakeReader(make_spec())
        run = reader.logged[2]
        reader.logged[2] = replace(run, key="old", params=run.params | {name: "77"})
        assert run.key in {plan.key for plan, _ in read(reader).missing}
