"""Figures on the results page against brute force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev

import pytest

from orchestrator.method_search import TrialPlan
from orchestrator.records import ModelRecord
from orchestrator.results.tables import best_methods, paired_differences
from orchestrator.wording import number, percent
from tests.orchestrator import results_factory
from tests.orchestrator.results.pages import (
    BITS,
    DENSITIES,
    METHODS,
    as_int8,
    facts_of,
    finals,
    read,
    runs,
    section,
    tables,
    write,
)
from tests.orchestrator.results_factory import (
    ACCURACY,
    DATA,
    FakeReader,
    make_spec,
)


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
        facts = {row[""]: line for row, line in facts_of(page)}
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
                method: fmean(t.test["accuracy"] for t in runs(reader, method, density))
                for method in METHODS[:3]
            }
            assert best[density] == [max(means, key=lambda method: means[method])]

    def test_equals_are_both_bold(self):
        def equal(plan: TrialPlan, record: ModelRecord) -> ModelRecord:
            same = plan.method_name in ("uniform", "flop-l0")
            return replace(record, test={BITS: 2.0}) if same else record

        best = best_methods(read(FakeReader(make_spec(), change=equal)), lambda runs: runs.test)
        assert best == {density: ["uniform", "flop-l0"] for density in DENSITIES}


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
