"""`lowrank bench` from the command line: what it writes, shows and refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.bench import UsageError, shapes_of
from lowrank import timing
from lowrank.benchmark.results import read, save
from lowrank.hf import save_pretrained
from tests.lowrank import tiny_bert, tiny_gpt2
from tests.lowrank.benchmark import tiny_decoder
from tests.lowrank.benchmark.results_factory import result

SMALL = ["--repeats", "7", "--no-resources", "--threads", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SAMPLE_S", 0.0)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, words)])


def refusal(*words: object) -> str:
    """The message of a call that must be the person's mistake."""
    found = call(*words)
    assert found.exit_code == 2, found.output
    return " ".join(found.stderr.split())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    model = tiny_bert()
    model.config.architectures = ["BertForSequenceClassification"]
    model.config.save_pretrained(tmp_path)
    return tmp_path / "config.json"


def test_a_config_at_two_densities(config: Path, tmp_path: Path):
    out, page = tmp_path / "bench.json", tmp_path / "docs" / "bench.md"
    words = ["--config", config, "--density", 0.5, "--density", 0.3, "--rank-multiple", 1]
    words += ["--batch", 1, "--batch", 2, "--length", 8, "--shape", "1x4", "--form", "folded"]
    found = call(*words, *SMALL, "--out", out, "--markdown", page)
    assert found.exit_code == 0, found.output
    subjects = read(out)["subjects"]
    assert [s["name"] for s in subjects] == [f"{config} at density {d}" for d in (0.5, 0.3)]
    for subject in subjects:
        cells = [(cell["batch"], cell["length"]) for cell in subject["cells"]]
        assert cells == [(1, 8), (2, 8), (1, 4)]
        assert "resources" not in subject
    assert "speed-up" in found.stdout
    assert page.read_text().count("| folded |") == 2 * 3


def test_folders_of_a_campaign(tmp_path: Path):
    subject = tiny_decoder()
    for name, model in (("dense", subject.dense), ("small", subject.compressed)):
        save_pretrained(copy.deepcopy(model), tmp_path / name, "AutoModelForCausalLM")
    out = tmp_path / "bench.json"
    words = [tmp_path / "dense", tmp_path / "small", "--shape", "1x4", "--new-tokens", 3]
    found = call(*words, "--form", "eager", *SMALL, "--out", out)
    assert found.exit_code == 0, found.output
    (measured,) = read(out)["subjects"]
    assert measured["name"] == "small"
    assert [cell["phase"] for cell in measured["cells"]] == ["prefill", "decode"]
    assert {row["num_tokens"] for row in measured["cells"][1]["rows"]} == {3}


def test_two_results_are_compared(tmp_path: Path):
    first = save(result(6.0), tmp_path / "a.json")
    second = save(result(4.0), tmp_path / "b.json")
    found = call("--compare", first, second)
    assert found.exit_code == 0
    assert "1.50x" in found.stdout


def test_results_of_two_fingerprints_are_refused_with_the_fields(tmp_path: Path):
    first = save(result(), tmp_path / "a.json")
    second = save(result(threads=8), tmp_path / "b.json")
    found = call("--compare", first, second)
    assert found.exit_code == 1
    assert "differ in threads: 2 and 8" in " ".join(found.stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give DENSE and COMPRESSED folders, or --config"),
        (["--config", "bert-base"], "--config needs a --density"),
        (["--config", "bert-base", "--density", 0.5, "--kind", "both"], "encoder or decoder"),
        (["--shape", "16"], "BATCHxLENGTH such as 16x128, got '16'"),
        (["--batch", 3], "give both"),
        (["--config", "bert-base", "--density", 1.5], "0 < density <= 1 must hold, got 1.5"),
        (["--config", "bert-base", "--density", 0.5, "--device", "tpu9"], "cpu or cuda"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[object], message: str):
    assert message in refusal(*words)


def test_few_repeats_are_refused_with_the_rule():
    found = call("--config", "bert-base", "--density", 0.5, "--repeats", 5)
    assert found.exit_code == 1
    assert "repeats >= 7 must hold, got 5" in found.stderr


def test_a_gpt2_has_too_few_positions(tmp_path: Path):
    tiny_gpt2().config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["XForCausalLM"]}))
    words = ["--config", tmp_path / "config.json", "--density", 0.5, "--shape", "1x17"]
    assert "<= 16 must hold" in call(*words, *SMALL).stderr


def test_shapes_are_a_grid_and_single_ones():
    assert shapes_of([], [], []) == [(1, 32), (16, 128)]
    assert shapes_of(["3x4"], [1, 2], [8]) == [(1, 8), (2, 8), (3, 4)]
    assert shapes_of(["1x8"], [1], [8]) == [(1, 8)]
    with pytest.raises(UsageError, match="batch >= 1"):
        shapes_of(["0x8"], [], [])
