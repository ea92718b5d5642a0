"""The results page: figures against brute force, what stays, what is left out, what is hidden."""

from __future__ import annotations

import random
import re
import shutil
import struct
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import fmean, median, stdev
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.campaign import Campaign
from orchestrator.campaign_state import TaskState
from orchestrator.errors import CampaignError, StorageError, TrackingError
from orchestrator.records import Int8, ModelRecord
from orchestrator.results import NOTES, Asked, write_results
from orchestrator.results.plots import series
from orchestrator.results.ranks import Place, places
from orchestrator.results.read import Results, read_results
from orchestrator.results.tables import best_methods, paired_differences
from orchestrator.results.text import free
from orchestrator.search import TrialPlan
from orchestrator.tracking import RunWriter, Tracking
from orchestrator.tracking_read import RunReader
from orchestrator.wording import number, percent, without_places
from tests.orchestrator import results_factory
from tests.orchestrator.results_factory import (
    ACCURACY,
    DATA,
    SETTING,
    FakeReader,
    make_record,
    make_spec,
    make_speed,
    store_campaign,
)

BITS = "bits_per_character"
DENSITIES = [0.5, 0.25, 0.1]
TODAY = date(2026, 11, 22)


def read(reader: Any, spec: Any = None) -> Results:
    spec = spec or reader.spec
    return read_results(reader, spec, spec.tasks[0])


def asked(out: Path, spec: str = "jobs/specs/compare.yaml", *overrides: str) -> Asked:
    return Asked(spec=Path(spec), overrides=overrides, task="letters", out=out)


def write(results: Results, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return write_results([results], asked(folder / "page.md"), TODAY).read_text()


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For pages of which only the text matters."""
    monkeypatch.setattr("orchestrator.results.page.write_plots", lambda results, folder: {})


@pytest.fixture(scope="module")
def reader() -> FakeReader:
    return FakeReader(make_spec())


@pytest.fixture(scope="module")
def folder(reader: FakeReader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write(read(reader), folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "page.md").read_text()


def section(page: str, title: str) -> str:
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every Markdown table of a text, rows by heading."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        lines = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def finals(reader: FakeReader, method: str, density: float) -> list[ModelRecord]:
    """The best draw where it was tuned and its repeats, found the long way round."""
    trials = [
        record
        for plan in reader.plans()
        if (record := reader.records.get(plan.key)) is not None
        and (plan.method_name, plan.method.density) == (method, density)
    ]
    draws = [trial for trial in trials if trial.seed == 7]
    best = min(draws, key=lambda trial: trial.quality)
    return [t for t in trials if t.config == best.config]


def as_int8(record: ModelRecord) -> Int8:
    """A quarter of the bytes, a little worse, faster."""
    return Int8(
        test={BITS: record.test[BITS] * 1.01},
        num_bytes=record.size.num_bytes // 4,
        speed=[make_speed(8, 0.3, random.Random(record.key))],
    )


METHODS = ["adaptive", "uniform", "flop-l0", "agp"]


class TestNumbers:
    def test_quality(self, page: str, reader: FakeReader):
        test, validation = tables(section(page, "Quality"))
        assert [row["method"] for row in test] == METHODS
        for rows, of in (
            (test, lambda record: record.test[BITS]),
            (validation, lambda record: record.quality),
        ):
            dense = of(reader.dense)
            for row in rows:
                for density in DENSITIES:
                    values = [of(t) for t in finals(reader, row["method"], density)]
                    assert len(values) == 3
                    text, difference, *_ = row[f"density {density:g}"].split("<br>")
                    shown = f"{number(fmean(values))} ± {stdev(values):.2g} (3)"
                    assert text.strip("*") == shown
                    assert difference == f"+{percent(fmean(values) / dense - 1)}"

    def test_what_is_said_of_scores(
        self, tmp_path: Path, no_plots: None, reader: FakeReader, monkeypatch: pytest.MonkeyPatch
    ):
        scores = {"min": 0.0, "mean": 2.7, "max": 5.0}
        splits = {"train": {"num_examples": 5_734, "scores": scores}}
        data = {"source": "GLUE stsb", "split_used_as_test": "validation", "label_names": []}
        monkeypatch.setattr(results_factory, "SETTING", {"data": data | {"splits": splits}})
        text = section(write(read(reader), tmp_path), "Setting")
        said = "GLUE stsb; train 5,734 examples; scores from 0 to 5; test is its split validation;"
        assert f"| data | {said}" in text

    def test_integers(self, tmp_path: Path, no_plots: None, reader: FakeReader):
        assert "## In 8-bit integers" not in write(read(reader), tmp_path)
        grown = FakeReader(
            make_spec(), change=lambda plan, record: replace(record, int8=as_int8(record))
        )
        grown.records[grown.dense.key] = replace(grown.dense, int8=as_int8(grown.dense))
        text = section(write(read(grown), tmp_path), "In 8-bit integers")
        (rows,) = tables(text)
        assert [(row["method"], row["density"]) for row in rows] == [
            ("dense", "1"),
            *((method, f"{density:g}") for method in METHODS for density in DENSITIES),
        ]
        assert "dtype float32" in text  # of the fingerprint
        full = grown.dense.size.num_bytes
        for row in rows:
            trials = (
                [grown.records[grown.dense.key]]
                if row["method"] == "dense"
                else finals(grown, row["method"], float(row["density"]))
            )
            values = [trial.int8.test[BITS] for trial in trials]
            before = [trial.test[BITS] for trial in trials]
            assert row["test bits per character"].startswith(number(fmean(values)))
            change = (fmean(values) - fmean(before)) / grown.dense.test[BITS]
            assert row["change"] == f"+{percent(change)}"
            size = median(trial.int8.num_bytes for trial in trials)
            assert row["bytes"] == f"{size:,.0f} ({percent(size / full)})"
            speed = median(trial.int8.speed[0].speedup for trial in trials)
            assert row["speed, batch 8"].startswith(f"{speed:.2f}x (")

    def test_a_realized_density_is_shown_where_it_is_off(self, page: str):
        for row in tables(section(page, "Quality"))[0]:
            for density in DENSITIES:
                shown = "density 0." in row[f"density {density:g}"]
                assert shown == (row["method"] == "flop-l0")
        assert "<br>density 0.2440 |" in page

    def test_paired_differences(self, page: str, reader: FakeReader):
        (rows,) = tables(section(page, "Paired differences"))
        assert [row["method"] for row in rows] == METHODS[1:]
        for row in rows:
            for density in DENSITIES:
                mine, reference = (
                    {t.seed: t.test[BITS] for t in finals(reader, method, density)}
                    for method in (row["method"], "adaptive")
                )
                differences = [mine[seed] - reference[seed] for seed in (7, 8, 9)]
                mean = f"{fmean(differences):+#.3g}"
                assert row[f"density {density:g}"] == f"{mean} ± {stdev(differences):.2g} (3)"

    def test_cost(self, page: str, reader: FakeReader):
        (dense, *rows) = tables(section(page, "Cost"))[0]
        assert (dense["steps"], dense["seconds"]) == ("600", "61 s")
        assert dense["parameters"] == f"{reader.dense.size.num_parameters:,}"
        assert [(r["method"], r["density"]) for r in rows] == [
            (method, f"{density:g}") for method in METHODS for density in DENSITIES
        ]
        for row in rows:
            density = float(row["density"])
            trials = finals(reader, row["method"], density)
            seconds = median(t.train_seconds for t in trials)
            reference = median(t.train_seconds for t in finals(reader, "adaptive", density))
            assert row["steps"] == "400"
            assert row["seconds"] == f"{seconds:.0f} s"
            assert row["of adaptive"] == f"{seconds / reference:.2f}x"
            parameters = median(t.size.num_parameters for t in trials)
            share = percent(parameters / reader.dense.size.num_parameters)
            assert row["parameters"] == f"{parameters:,.0f} ({share})"
            macs = median(t.size.macs_per_token for t in trials)
            assert row["MACs per token"].startswith(f"{macs:,.0f} (")
            for index, batch in enumerate((1, 32)):
                speeds = [t.speed[index] for t in trials]
                middle = median(s.speedup for s in speeds)
                low, high = (
                    median(getattr(s, name) for s in speeds)
                    for name in ("speedup_low", "speedup_high")
                )
                assert row[f"speed, batch {batch}"] == f"{middle:.2f}x ({low:.2f}-{high:.2f})"

    def test_tuning(self, page: str, reader: FakeReader):
        (rows,) = tables(section(page, "Tuning"))
        draws = [p for p in reader.plans() if p.repeat == 0 and p.method.density == 0.25]
        draws = [p for p in draws if p.method_name in ("adaptive", "flop-l0")]
        assert len(rows) == len(draws) == 5
        for row, plan in zip(rows, draws, strict=True):
            assert row["method"] == plan.method_name
            assert row["values"] == f"learning_rate {plan.searched['learning_rate']:.3g}"
            quality = reader.records[plan.key].quality
            best = finals(reader, plan.method_name, 0.25)[0].key == plan.key
            assert row["validation"] == (f"**{number(quality)}** ←" if best else number(quality))

    def test_from_gates_to_final(self, page: str, reader: FakeReader):
        (rows,) = tables(section(page, "From gates to final"))
        assert {row["method"] for row in rows} == {"adaptive", "flop-l0", "agp"}
        for row in rows:
            trial = finals(reader, row["method"], float(row["density"]))[0]
            assert trial.seed == 7
            assert row["expected"] == f"{trial.projection['expected_density']:.4f}"
            assert row["before"] == number(trial.projection["validation_before"])
            assert row["after"] == number(trial.projection["validation_after"])
            assert row["final"] == number(trial.quality)
            last = [p.undecided for p in trial.curve if p.undecided is not None][-1:]
            assert row["undecided"] == (percent(last[0]) if last else "-")

    def test_ranks_by_kind_of_matrix(self, page: str, reader: FakeReader):
        (rows,) = tables(section(page, "Ranks"))
        assert [row["matrix"].strip("`") for row in rows] == list(results_factory.SHAPES)
        for row in rows:
            kind = row["matrix"].strip("`")
            inputs, outputs = results_factory.SHAPES[kind]
            for density in DENSITIES:
                shares = [
                    1.0 if layer["dense"] else layer["rank"] * (inputs + outputs) / inputs / outputs
                    for trial in finals(reader, "adaptive", density)
                    for name, layer in trial.ranks.items()
                    if name.endswith(kind)
                ]
                assert len(shares) == 3 * results_factory.BLOCKS
                assert row[f"density {density:g}"] == f"{fmean(shares):.3f}"

    def test_setting(self, page: str, reader: FakeReader):
        facts = {row[""]: line for row, line in _facts(page)}
        assert facts["spec"] == f"digest `{reader.spec.digest()}`"
        assert facts["trials"] == "39 finished, seeds 7, 8, 9"
        assert f"hash `{DATA}`" in facts["data"]
        assert "train 1,804,211 tokens (1,804,211 characters)" in facts["data"]
        assert facts["model"].startswith("gpt2 (n_layer 6, n_embd 192): ")
        assert facts["model"].endswith(
            f"{reader.dense.size.num_prunable:,} of them prunable in 24 matrices"
        )
        assert facts["parent"].startswith("600 steps of 16 sequences in 61 s, seed 7; ")
        assert facts["versions"] == "torch 2.13.0, ray 2.60.0"
        assert "cpu Some CPU" in facts["hardware"]
        assert facts["methods"].startswith(
            "adaptive (learning_rate searched); uniform (kind low-rank)"
        )


def _facts(page: str) -> list[tuple[dict[str, str], str]]:
    lines = [line for line in section(page, "Setting").splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]
    return [({"": name.strip()}, text.strip()) for name, text in cells]


class TestBest:
    def test_one_per_column_and_never_single_weights(self, page: str):
        rows = tables(section(page, "Quality"))[0]
        for density in DENSITIES:
            bold = [row["method"] for row in rows if "**" in row[f"density {density:g}"]]
            assert bold == ["adaptive"], "agp has less, but its matrices stay as large"
        assert "single weights (agp) apart" in page

    def test_a_higher_score_is_better(self):
        reader = FakeReader(make_spec(), metric=ACCURACY)
        best = best_methods(read(reader), lambda runs: runs.test)
        for density in DENSITIES:
            means = {
                method: fmean(t.test["accuracy"] for t in _runs(reader, method, density))
                for method in METHODS[:3]
            }
            assert best[density] == [max(means, key=lambda method: means[method])]

    def test_equals_are_both_bold(self):
        def equal(plan: TrialPlan, record: ModelRecord) -> ModelRecord:
            same = plan.method_name in ("uniform", "flop-l0")
            return replace(record, test={BITS: 2.0}) if same else record

        best = best_methods(read(FakeReader(make_spec(), change=equal)), lambda runs: runs.test)
        assert best == {density: ["uniform", "flop-l0"] for density in DENSITIES}


def _runs(reader: FakeReader, method: str, density: float) -> list[ModelRecord]:
    return read(reader).runs()[method][density].trials


class TestPairs:
    def test_only_common_seeds_count(self, reader: FakeReader):
        runs = read(reader).runs()
        mine, theirs = runs["uniform"][0.5], runs["adaptive"][0.5]
        fewer = replace(mine, trials=mine.trials[1:])
        assert [t.seed for t in fewer.trials] == [8, 9]
        expected = [
            a.test[BITS] - b.test[BITS]
            for a, b in zip(fewer.trials, theirs.trials[1:], strict=True)
        ]
        assert paired_differences(fewer, theirs, BITS) == expected
        assert paired_differences(fewer, replace(theirs, trials=theirs.trials[:1]), BITS) == []
        assert paired_differences(None, theirs, BITS) == []


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
        assert dict((r[""], t) for r, t in _facts(page))["trials"] == "0 finished, 39 missing"

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
        assert "1 failed" in dict((r[""], t) for r, t in _facts(page))["trials"]

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


class TestSections:
    def test_what_has_nothing_to_show_is_left_out(self, tmp_path: Path):
        search = {"density": [0.5], "methods": {"uniform": {"kind": "low-rank"}}}

        def bare(plan: TrialPlan, record: ModelRecord) -> ModelRecord:
            return replace(record, ranks={}, speed=[], projection={}, curve=record.curve[-1:])

        reader = FakeReader(make_spec(search=search), change=bare)
        reader.dense = reader.records[reader.dense.key] = replace(reader.dense, curve=[])
        page = write(read(reader), tmp_path)
        assert re.findall(r"^## (.*)", page, re.MULTILINE) == ["Setting", "Quality", "Cost"]
        assert sorted(p.name for p in (tmp_path / "page").iterdir()) == ["cost.png", "quality.png"]
        assert "speed" not in page

    def test_a_campaign_without_compared_methods(self, no_plots: None, tmp_path: Path):
        spec = make_spec(
            search={
                "density": [0.5],
                "trials_per_density": 3,
                "learning_rate": {"log_uniform": [0.01, 0.1]},
            }
        )
        page = write(read(FakeReader(spec)), tmp_path)
        assert tables(section(page, "Quality"))[0][0]["method"] == "adaptive"
        assert len(tables(section(page, "Tuning"))[0]) == 3
        assert "## Paired differences" not in page


class TestPage:
    def test_head(self, page: str):
        lines = page.splitlines()
        assert lines[0] == "# letters: methods compared"
        assert lines[2].startswith("2026-11-22. ")
        command = "jobs/specs/compare.yaml"
        assert f"    lowrank results {command} --task letters --out page.md" in lines
        assert f"    lowrank run {command}" in lines

    def test_commands_repeat_what_decides_results(self, tmp_path: Path):
        words = asked(
            tmp_path / "page.md",
            str(tmp_path / "compare.yaml"),
            "seed=3",
            f"storage={tmp_path}",
            "tracking.uri=http://secret",
            "tasks.letters.data={source: files, train: /data/ada/train.txt}",
        )
        changed = "'tasks.letters.data={source: files, train: …/train.txt}'"
        assert words.run == f"lowrank run compare.yaml --set seed=3 --set {changed}"
        assert words.results == (
            f"lowrank results compare.yaml --set seed=3 --set {changed} "
            "--task letters --out page.md"
        )

    def test_nothing_tells_where_it_was_made(self, page: str):
        assert "ada" not in re.sub("adaptive", "", page)
        assert "/home" not in page
        assert not re.search(r"(?<![\w.<…])/(?!notes)\w", page), "an absolute path"

    def test_every_plot_is_there_and_shown(self, page: str, folder: Path):
        shown = re.findall(r"!\[[^\]]+\]\((page/\w+\.png)\)", page)
        names = ("parent", "quality", "cost", "density", "lambda", "undecided", "ranks")
        assert shown == [f"page/{name}.png" for name in names]
        assert sorted(p.stem for p in (folder / "page").iterdir()) == sorted(names)
        for name in shown:
            head = (folder / name).read_bytes()[:24]
            assert head[:8] == b"\x89PNG\r\n\x1a\n"
            width, height = struct.unpack(">II", head[16:])
            assert width == 1200
            assert 400 <= height <= 1400

    def test_the_same_records_give_the_same_page(
        self, page: str, reader: FakeReader, tmp_path: Path
    ):
        assert write(read(reader), tmp_path) == page

    def test_notes_stay(self, no_plots: None, reader: FakeReader, tmp_path: Path):
        write(read(reader), tmp_path)
        path = tmp_path / "page.md"
        notes = f"{NOTES[0]}\n\nMine: *all* of it, \\1 and /too.\n  \n{NOTES[1]}"
        path.write_text(path.read_text().replace("\n".join(NOTES), notes) + "gone\n")
        again = write(read(reader), tmp_path)
        assert again.count(notes) == 1
        assert again.index("lowrank run") < again.index(notes) < again.index("## Setting")
        assert "gone" not in again
        assert write(read(reader), tmp_path) == again

    @pytest.mark.parametrize("text", ["# Mine\n", f"# Mine\n{NOTES[0]}\nnever closed\n"])
    def test_a_page_of_somebody_else_is_not_replaced(
        self, reader: FakeReader, tmp_path: Path, text: str
    ):
        (tmp_path / "page.md").write_text(text)
        with pytest.raises(CampaignError, match="is there without a block <!-- notes -->"):
            write(read(reader), tmp_path)
        assert (tmp_path / "page.md").read_text() == text
        assert not (tmp_path / "page").exists()

    def test_a_plot_of_an_earlier_page_goes_and_other_files_stay(self, tmp_path: Path):
        write(read(FakeReader(make_spec())), tmp_path)
        (tmp_path / "page" / "mine.png").write_text("mine")
        write(read(FakeReader(make_spec(), unfinished=["all"])), tmp_path)
        assert sorted(p.name for p in (tmp_path / "page").iterdir()) == ["mine.png", "parent.png"]

    def test_a_folder_that_cannot_be_made(self, reader: FakeReader, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="is a file, not a folder"):
            write_results([read(reader)], asked(tmp_path / "file" / "page.md"), TODAY)


class TestPieces:
    @pytest.mark.parametrize(
        ("text", "hidden"),
        [
            ("in /home/ada/x.txt now", "in …/x.txt now"),
            ("sqlite:////srv/ada/mlflow.db", "…/mlflow.db"),
            ("file:///srv/x", "…/x"),
            ("~/x/y.yaml", "…/y.yaml"),
            ("{train: /a/b.txt, test: /c.txt}", "{train: …/b.txt, test: …/c.txt}"),
            ("http://ada:pw@host:5000/x failed", "… failed"),
            ("15 / steps, and/or 1/2", "15 / steps, and/or 1/2"),
            ("jobs/specs/demo.yaml ./x Salesforce/wikitext", None),
        ],
    )
    def test_places_are_hidden(self, text: str, hidden: str | None):
        assert without_places(text) == (text if hidden is None else hidden)

    def test_free_texts_are_no_markup(self):
        assert free("a|b\n*c* _d_ n_e `f` <g>") == r"a\|b \*c\* \_d\_ n_e \`f\` \<g>"

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            (["transformer.h.3.attn.c_attn"], [("3", "attn.c_attn")]),
            (["model.layers.0.experts.7.w1"], [("0", "experts.*.w1")]),
            (["fc"], [("", "fc")]),
            (["0.fc", "11.fc"], [("0", "fc"), ("11", "fc")]),
            (
                ["encoder.block.0.wi", "decoder.block.0.wi", "head"],
                [("encoder.0", "wi"), ("decoder.0", "wi"), ("", "head")],
            ),
            (["m.enc.0.w", "m.dec.0.w"], [("m.enc.0", "w"), ("m.dec.0", "w")]),
        ],
    )
    def test_places_of_matrices(self, names: list[str], found: list[tuple[str, str]]):
        assert list(places(names).values()) == [Place(*each) for each in found]

    def test_a_multiplier_begins_when_it_moves(self, reader: FakeReader):
        curve = next(iter(read(reader).finished.values())).curve
        curve = [replace(curve[0], lambda_linear=0.0), *curve[1:]]
        steps, values = series(curve, "lambda_linear")
        assert steps[0] == curve[1].step
        told = [point for point in curve if point.lambda_linear is not None]
        assert len(steps) == len(values) == len(told) - 1 > 5


class TestMlflow:
    """MLflow alone is enough: the campaign's folder is not read, and may be gone."""

    @pytest.fixture
    def tracking(self, store: str, tmp_path: Path) -> Tracking:
        return Tracking(store, "compare", tmp_path / "mlflow-artifacts")

    def test_a_record_is_read_back_equal(self, tracking: Tracking):
        spec = make_spec()
        fake = FakeReader(spec)
        record = make_record(fake.plans()[0], fake.dense)
        run = tracking.model_run(record.key, "p", "trial", {"task": "letters"}, {"kind": "trial"})
        RunWriter(tracking.uri, run).record(replace(record, speed=[]))
        RunWriter(tracking.uri, run).record_file(record)
        (logged,) = RunReader(tracking.uri, "compare").runs()
        assert (logged.key, logged.status, logged.run_id) == (record.key, "RUNNING", run)
        assert RunReader(tracking.uri, "compare").record(logged) == record

    def test_a_page_from_a_store(self, no_plots: None, tracking: Tracking, tmp_path: Path):
        methods = {"uniform": {"kind": "low-rank"}, "adaptive": {"learning_rate": [0.1, 0.2]}}
        search = {"density": [0.25], "repeats": 2, "trials_per_density": 2, "methods": methods}
        spec = make_spec(search=search)
        fake = FakeReader(spec)
        store_campaign(fake, tracking)
        (tmp_path / "compare").mkdir()
        shutil.rmtree(tmp_path / "compare")
        results = read(RunReader(tracking.uri, "compare"), spec)
        assert results.finished == {plan.key: fake.records[plan.key] for plan in fake.plans()}
        assert results.dense == fake.records[fake.dense.key]
        assert (results.missing, results.to_come, results.left_out) == ([], 0, 0)
        assert results.recorded_digest == spec.digest()
        assert results.result.data == SETTING["data"]
        assert results.hardware == SETTING["hardware"]
        text = write(results, tmp_path)
        assert str(tmp_path) not in text
        assert [r["method"] for r in tables(section(text, "Quality"))[0]] == ["uniform", "adaptive"]

    def test_the_digest_is_of_the_spec_that_ran_last(self, tracking: Tracking):
        for digest in ("one", "two"):
            tracking.task_run("compare", "letters", "", {"spec_hash": digest})
        (run,) = RunReader(tracking.uri, "compare").runs()
        assert run.tags["spec_hash"] == "two"

    def test_a_measured_record_is_logged_again(
        self, tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        spec = make_spec(storage=str(tmp_path))
        fake = FakeReader(spec)
        record = replace(make_record(fake.plans()[0], fake.dense), speed=[])
        run = tracking.model_run(record.key, "p", "trial", {}, {})
        record = replace(record, mlflow_run_id=run)
        RunWriter(tracking.uri, run).record(record)
        rows = [make_speed(8, 0.5, random.Random(0))]
        monkeypatch.setattr("orchestrator.cluster.run_alone", lambda *args: rows)
        data: Any = SimpleNamespace(folder=tmp_path)
        state = TaskState(
            task=spec.tasks[0], data=data, run_id="p", dense=fake.dense, trials=[record]
        )
        Campaign(spec, lambda text: None)._measure(state)
        reader = RunReader(tracking.uri, "compare")
        assert reader.record(reader.runs()[0]) == replace(record, speed=rows) == state.trials[0]

    def test_integers_are_measured_once_where_they_are_asked_for(
        self, tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        spec = make_spec(storage=str(tmp_path), measure={"int8": True})
        fake = FakeReader(spec)
        trial = make_record(fake.plans()[0], fake.dense)
        records = [
            replace(record, mlflow_run_id=tracking.model_run(record.key, "p", "n", {}, {}))
            for record in (fake.dense, trial)
        ]
        answers = ["no kernels", as_int8(trial)]
        monkeypatch.setattr("orchestrator.cluster.run_alone", lambda *args: answers.pop(0))
        data: Any = SimpleNamespace(folder=tmp_path)
        state = TaskState(
            task=spec.tasks[0], data=data, run_id="p", dense=records[0], trials=[records[1]]
        )
        said: list[str] = []
        without = make_spec(storage=str(tmp_path))
        Campaign(without, said.append)._measure_int8(state)
        assert (said, len(answers)) == ([], 2)
        campaign = Campaign(spec, said.append)
        campaign._measure_int8(state)
        assert "no 8-bit integers: no kernels" in said[1]
        assert state.dense == records[0]
        (grown,) = state.trials
        assert grown == replace(records[1], int8=as_int8(trial))
        reader = RunReader(tracking.uri, "compare")
        run = next(run for run in reader.runs() if run.key == trial.key)
        assert reader.record(run) == grown == ModelRecord.load(campaign.layout.record(trial.key))
        metrics = tracking.client.get_run(str(grown.mlflow_run_id)).data.metrics
        assert metrics[f"int8/test_{BITS}"] == grown.int8.test[BITS]
        assert metrics["int8/num_bytes"] == grown.int8.num_bytes
        assert metrics["int8_speed/b8x128/speedup"] == grown.int8.speed[0].speedup
        # the next run asks for the dense one again, and no more
        answers.append("no kernels")
        campaign._measure_int8(state)
        assert answers == []

    def test_a_store_that_is_not_there_is_not_made(self, tmp_path: Path):
        with pytest.raises(TrackingError, match="nothing is recorded in sqlite"):
            RunReader(f"sqlite:///{tmp_path}/none.db", "compare")
        assert list(tmp_path.iterdir()) == []

    def test_no_such_experiment(self, store: str):
        with pytest.raises(TrackingError, match="has no experiment 'compare'"):
            RunReader(store, "compare")

    @pytest.mark.parametrize("text", ["{", '{"key": 1}', "[]"])
    def test_a_record_in_another_form_is_none(self, tracking: Tracking, text: str):
        run = tracking.model_run("k", "p", "n", {}, {})
        reader = RunReader(tracking.uri, "compare")
        assert reader.record(reader.runs()[0]) is None
        assert reader.setting(reader.runs()[0]) == {}
        RunWriter(tracking.uri, run).client.log_text(run, text, "record.json")
        assert reader.record(reader.runs()[0]) is None
