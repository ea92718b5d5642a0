"""What each command does and says, on a small campaign, without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowrank.hf import load_pretrained
from orchestrator.records import ModelRecord
from orchestrator.spec_io import load_spec
from orchestrator.tracking import RunWriter, Tracking
from orchestrator.trial_keys import dense_key
from tests.jobs.command import Lowrank, refused
from tests.jobs.specs import line_of, write_spec
from tests.orchestrator.record_factory import make_dense
from tests.orchestrator.small import Family


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return write_spec(tmp_path)


class TestValidate:
    def test_tasks_and_trials_are_listed(self, lowrank: Lowrank, spec: Path):
        result = lowrank("validate", spec)
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines[0] == f"{spec}: campaign 'small', seed 3, results under {spec.parent}/runs"
        assert lines[1] == (
            "  letters (language-modelling): dense 6 steps; 4 trials of 8 steps on 1 worker(s), "
            "1 side by side"
        )
        assert lines[6].startswith("  moods (classification): ")
        trials = [line.split() for line in lines[2:6]]
        assert [trial[0] for trial in trials] == ["density=0.5", "density=0.25"] * 2
        assert all(trial[1].startswith("penalty_lr=") for trial in trials)
        assert len(lines) == 11

    def test_overrides_apply(self, lowrank: Lowrank, spec: Path):
        result = lowrank(
            "validate", spec, "--set", "search.trials_per_density=1", "--set", "seed=9"
        )
        assert "seed 9" in result.stdout
        assert result.stdout.count("density=") == 4

    def test_nothing_is_written(self, lowrank: Lowrank, spec: Path):
        before = sorted(spec.parent.rglob("*"))
        lowrank("validate", spec)
        assert sorted(spec.parent.rglob("*")) == before

    @pytest.mark.parametrize(
        ("old", "new", "piece", "message"),
        [
            ("seed: 3", "sead: 3", "sead", "sead"),
            ("density: [0.5, 0.25]", "density: [0.5, 1.7]", "1.7", "search.density[1]: must be"),
            ("kind: classification", "kind: classify", "classify", "classify"),
            ("train: train.tsv", "train: away.tsv", "away.tsv", "file not found"),
            ("bytes <= 99%", "bites <= 99%", "bites", "did you mean 'bytes'"),
            ("method: {", "method: {nothing: 1, ", "nothing", "method.nothing"),
        ],
    )
    def test_mistakes_are_shown_with_their_line(
        self, lowrank: Lowrank, tmp_path: Path, old: str, new: str, piece: str, message: str
    ):
        path = write_spec(tmp_path, old, new)
        shown = refused(lowrank("validate", path), 2)
        assert shown.startswith(f"{path}:{line_of(path, piece)}: ")
        assert message in shown

    def test_every_mistake_is_shown(self, lowrank: Lowrank, spec: Path):
        spec.write_text(spec.read_text().replace("steps: 6", "steps: -6"))
        shown = refused(lowrank("validate", spec), 2).splitlines()
        assert len(shown) == 2
        assert all("steps" in line and "-6" in line for line in shown)

    def test_a_wrong_override_is_named(self, lowrank: Lowrank, spec: Path):
        assert "--set" in refused(lowrank("validate", spec, "--set", "tasks.nobody.x=1"), 2)

    def test_no_file(self, lowrank: Lowrank, tmp_path: Path):
        path = tmp_path / "none.yaml"
        assert refused(lowrank("validate", path), 2) == f"{path}: file not found"
        assert "is a folder" in refused(lowrank("validate", tmp_path), 2)


@pytest.mark.parametrize("command", ["run", "report", "results", "promote", "rollback", "ui"])
def test_every_command_checks_the_spec_first(lowrank: Lowrank, tmp_path: Path, command: str):
    path = write_spec(tmp_path, "seed: 3", "seed: many")
    more = ["--out", tmp_path / "page.md"] if command == "results" else []
    assert f"{path}:2: seed" in refused(lowrank(command, path, *more), 2)
    assert not (tmp_path / "runs").exists()


class TestBeforeARun:
    def test_no_report(self, lowrank: Lowrank, spec: Path):
        assert refused(lowrank("report", spec), 1) == (
            f"campaign 'small' has no result in {spec.parent}/runs/small yet: lowrank run {spec}"
        )

    @pytest.mark.parametrize("command", ["promote", "rollback"])
    def test_no_registry(self, lowrank: Lowrank, spec: Path, command: str):
        shown = refused(lowrank(command, spec, "--task", "letters"), 1)
        assert shown == (
            f"there is no registry at sqlite:///{spec.parent}/runs/mlflow.db yet: lowrank run first"
        )

    def test_no_pages(self, lowrank: Lowrank, spec: Path):
        assert "nothing is recorded in sqlite" in refused(lowrank("ui", spec), 1)

    @pytest.mark.parametrize("command", ["report", "promote", "rollback", "ui"])
    def test_nothing_is_made_by_looking(self, lowrank: Lowrank, spec: Path, command: str):
        before = sorted(spec.parent.rglob("*"))
        lowrank(command, spec)
        assert sorted(spec.parent.rglob("*")) == before


class TestTask:
    @pytest.mark.parametrize("command", ["promote", "rollback", "compress", "results"])
    def test_an_unknown_task_is_named_with_the_known(
        self, lowrank: Lowrank, spec: Path, command: str
    ):
        options = {"compress": ["--output", "out"], "results": ["--out", "page.md"]}
        more = options.get(command, [])
        shown = refused(lowrank(command, spec, "--task", "nobody", *more), 1)
        assert shown == "--task: no task 'nobody'; tasks: letters, moods"

    def test_of_several_one_must_be_chosen(self, lowrank: Lowrank, spec: Path):
        shown = refused(lowrank("rollback", spec), 1)
        assert shown == "--task is needed, the spec has 2: letters, moods"


class TestResults:
    def test_nothing_is_recorded_yet(self, lowrank: Lowrank, spec: Path):
        before = sorted(spec.parent.rglob("*"))
        shown = refused(lowrank("results", spec, "--task", "letters", "--out", "page.md"), 1)
        assert shown == f"nothing is recorded in sqlite:///{spec.parent}/runs/mlflow.db yet"
        assert sorted(spec.parent.rglob("*")) == before

    def test_a_page_must_be_named_and_be_markdown(self, lowrank: Lowrank, spec: Path):
        result = lowrank("results", spec, "--task", "letters")
        assert result.exit_code == 2
        assert "--out" in result.stderr
        shown = refused(lowrank("results", spec, "--task", "letters", "--out", "page.html"), 1)
        assert shown == "--out must name a file that ends in .md, got page.html"

    def test_a_page_of_somebody_else_is_told_of_first(self, lowrank: Lowrank, spec: Path):
        Path("page.md").write_text("# Mine")
        shown = refused(lowrank("results", spec, "--task", "letters", "--out", "page.md"), 1)
        assert shown.startswith("--out: page.md is there without a block <!-- notes -->")
        assert Path("page.md").read_text() == "# Mine"

    def test_a_parent_is_needed_and_then_there_is_a_page(
        self, lowrank: Lowrank, store: str, tmp_path: Path
    ):
        storage = ("--set", f"storage={tmp_path}")
        spec = load_spec(write_spec(tmp_path), [storage[1]])
        words = ("results", tmp_path / "spec.yaml", "--task", "letters", "--out", "docs/page.md")
        tracking = Tracking(store, "small", tmp_path / "artifacts")
        shown = refused(lowrank(*words, *storage), 1)
        assert "the dense reference of task 'letters' is not finished" in shown

        task = spec.task("letters")
        params = {"task": "letters", "seed": 3, "data_hash": "d", "dense": task.dense.model_dump()}
        run = tracking.model_run(
            dense_key(spec, task, "d"), "p", "dense", params, {"kind": "dense"}
        )
        writer = RunWriter(store, run)
        writer.record_file(make_dense(task="letters"))
        writer.end("FINISHED")
        result = lowrank(*words, *storage)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == "docs/page.md: letters: 0 trials, 4 missing\n"
        page = Path("docs/page.md").read_text()
        assert "lowrank results spec.yaml --task letters --out docs/page.md" in page
        assert str(tmp_path) not in page

        # without --task, the tasks that have begun
        result = lowrank("results", tmp_path / "spec.yaml", "--out", "docs/all.md", *storage)
        assert result.exit_code == 0, result.stderr
        assert "the dense reference of task 'moods' is not finished" in result.stdout
        assert "docs/all.md: letters: 0 trials, 4 missing\n" in result.stdout


class TestCompress:
    @pytest.mark.parametrize("task", ["letters", "moods"])
    def test_a_model_is_made_that_loads(self, lowrank: Lowrank, spec: Path, task: str):
        output = spec.parent / "out"
        result = lowrank("compress", spec, "--task", task, "--density", "0.3", "-o", output)
        assert result.exit_code == 0, result.stderr
        assert sorted(path.name for path in output.iterdir()) == ["compressed", "dense"]
        record = ModelRecord.load(output / "compressed" / "record.json")
        assert record.export == str(output / "compressed")
        dense = ModelRecord.load(output / "dense" / "record.json")
        assert dense.export == str(output / "dense")
        assert record.densities.prunable <= 0.3
        model = load_pretrained(output / "compressed")
        assert sum(p.numel() for p in model.parameters()) == record.size.num_parameters
        with torch.no_grad():
            assert model(input_ids=torch.tensor([[2, 3, 4]])).logits.isfinite().all()
        last = result.stdout.splitlines()[-1]
        assert last.startswith(f"{output}: {record.size.num_parameters:,} parameters, ")
        assert f"{record.test[record.metric.name]:.4f}" in last
        assert "step 6/6 dense" in result.stdout
        assert list(Path.cwd().iterdir()) == [], "a folder holds only what was asked for"

    def test_the_density_of_the_method_is_the_default(self, lowrank: Lowrank, spec: Path):
        output = spec.parent / "out"
        lowrank("compress", spec, "--task", "letters", "-o", output)
        record = ModelRecord.load(output / "compressed" / "record.json")
        assert record.config["density"] == 0.4
        assert 0.3 < record.densities.prunable <= 0.4

    @pytest.mark.parametrize("kind", ["full", "file"])
    def test_an_output_in_use_is_refused(self, lowrank: Lowrank, spec: Path, kind: str):
        output = spec.parent / "out"
        if kind == "file":
            output.write_text("mine")
        else:
            output.mkdir()
            (output / "mine").write_text("mine")
        shown = refused(lowrank("compress", spec, "--task", "letters", "-o", output), 1)
        assert shown == f"--output must be a new or empty folder, got {output}"

    def test_an_output_under_a_file_is_refused(self, lowrank: Lowrank, spec: Path):
        output = spec / "out"
        shown = refused(lowrank("compress", spec, "--task", "letters", "-o", output), 1)
        assert "a part of the path is a file, not a folder" in shown

    def test_an_empty_output_is_fine(self, lowrank: Lowrank, spec: Path):
        (spec.parent / "out").mkdir()
        words = ("compress", spec, "--task", "letters", "-o", spec.parent / "out")
        assert lowrank(*words).exit_code == 0

    @pytest.mark.parametrize(
        ("density", "message"),
        [
            ("0.001", "density >= 0."),
            ("0", "0 < density <= 1 must hold, got 0.0"),
            ("1.5", "0 < density <= 1 must hold, got 1.5"),
            ("nan", "0 < density <= 1 must hold, got nan"),
        ],
    )
    def test_a_density_that_cannot_be(
        self, lowrank: Lowrank, spec: Path, density: str, message: str
    ):
        result = lowrank(
            "compress", spec, "--task", "letters", "-o", spec.parent / "out", "--density", density
        )
        assert result.exit_code == 2
        assert message in result.stderr

    def test_patterns_that_match_nothing(self, lowrank: Lowrank, spec: Path):
        result = lowrank(
            "compress",
            spec,
            "--task",
            "letters",
            "-o",
            spec.parent / "out",
            "--set",
            "method.include=[nothing.*]",
        )
        assert result.exit_code == 2
        assert "pattern 'nothing.*' matches no layer; layers that can be matched: " in result.stderr


class TestExport:
    @pytest.mark.slow
    def test_a_form_is_written_and_verified(self, lowrank: Lowrank, lm: Family, tmp_path: Path):
        record, out = lm.trials[0], tmp_path / "folded"
        result = lowrank("export", record.export, "--form", "folded", "--out", out)
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        size = (out / "model.safetensors").stat().st_size
        assert lines[0].startswith(f"{out}: {size:,} bytes, ")
        assert "this is the dense model again" in lines[0]
        assert lines[1] == " " * 3 + "100.00% of the dense pruned matrices"
        assert lines[-1].startswith("  verified in a fresh process by from_pretrained: logits with")

    def test_sizes_are_those_of_the_campaign(self, lowrank: Lowrank, lm: Family, tmp_path: Path):
        record, out = lm.trials[0], tmp_path / "small"
        words = ("--form", "factorized", "--out", out, "--no-verify")
        result = lowrank("export", record.export, *words)
        assert result.exit_code == 0, result.stderr
        densities = record.densities
        assert f"{densities.prunable:8.2%} of the dense pruned matrices, at most" in result.stdout
        assert f"{densities.parameters:8.2%} of the dense parameters" in result.stdout
        assert f"{densities.bytes:8.2%} of the dense bytes" in result.stdout
        assert "not verified" in result.stdout

    def test_bad_requests(self, lowrank: Lowrank, lm: Family, tmp_path: Path):
        words = ("export", lm.trials[0].export, "--out", tmp_path / "x")
        shown = refused(lowrank(*words, "--form", "gguf"), 1)
        assert shown == "form must be one of factorized, pivoted, folded, onnx, pt2, got 'gguf'"
        shown = refused(lowrank("export", tmp_path, "--form", "folded", "-o", tmp_path / "x"), 1)
        assert "not a finished lowrank export" in shown


class TestRun:
    def test_layers_that_a_compared_method_cannot_prune_stop_it_before_any_training(
        self, lowrank: Lowrank, store: str, tmp_path: Path
    ):
        spec = write_spec(
            tmp_path,
            "  penalty_lr: {log_uniform: [0.01, 1]}\n",
            "  methods: {ranks: {}, width: {kind: heads-ffn}}\n",
        )
        result = lowrank("run", spec, "--set", "method.exclude=['*c_proj*']")
        assert result.exit_code == 1
        shown = result.stderr
        assert "method of task letters: transformer.h.0.attn: heads and neurons are pruned" in shown
        assert "transformer.h.0.attn.c_proj did not, or is tied" in shown
        assert not list((tmp_path / "runs").glob("**/*.safetensors"))
