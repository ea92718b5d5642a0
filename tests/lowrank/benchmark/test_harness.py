from __future__ import annotations

import json

import pytest
import torch

from lowrank import LowRankError, timing
from lowrank.benchmark.harness import Options, run_benchmark
from lowrank.benchmark.results import read, save
from lowrank.benchmark.subjects import Subject
from lowrank.models.sru_lm import SruConfig, SruForCausalLM
from tests.lowrank.benchmark import tiny_decoder, tiny_encoder

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr(timing, "MIN_SAMPLE_S", 0.0)


def options(**fields):
    known = {"shapes": [(1, 4), (2, 8)], "new_tokens": 3, "forms": ("folded",), "repeats": 7}
    return Options(**known | {"threads": 1, "device": CPU, "resources": False} | fields)


def test_a_run_measures_every_cell_of_every_subject_and_is_json(tmp_path):
    said = []
    result = run_benchmark([tiny_encoder(), tiny_decoder()], options(), said.append)
    assert read(save(result, tmp_path / "new" / "bench.json")) == json.loads(json.dumps(result))
    encoder, decoder = result["subjects"]
    assert [cell["phase"] for cell in encoder["cells"]] == ["forward"] * 2
    assert [cell["phase"] for cell in decoder["cells"]] == ["prefill"] * 2 + ["decode"] * 2
    for cell in (*encoder["cells"], *decoder["cells"]):
        assert len(cell["layers"]) in (3, 4)
        assert cell["rest"].keys() == cell["operators"].keys() == {"dense", "compressed"}
    assert said[0] == "tiny encoder: forward 1 x 4"
    assert len(said) == 6
    assert result["fingerprint"]["threads"] == 1
    assert result["fingerprint"]["dtype"] == "float32"
    assert result["settings"] == {"repeats": 7, "seed": 0, "forms": ["eager", "folded"]}
    assert encoder["left_out"] == []


def test_a_decoder_without_a_cache_is_measured_on_prompts_alone():
    config = SruConfig(vocab_size=40, hidden_size=8, projection_size=8, num_hidden_layers=1)
    model = SruForCausalLM(config).eval()
    subject = Subject(name="sru", kind="decoder", dense=model, compressed=model)
    found = run_benchmark([subject], options(shapes=[(1, 4)]))["subjects"][0]
    assert [cell["phase"] for cell in found["cells"]] == ["prefill"]
    reason = "SruForCausalLM keeps no KV cache to decode with"
    assert found["left_out"] == [f"decode 1 x 4 + 3: {reason}"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repeats": 6}, "repeats >= 7 must hold, got 6"),
        ({"forms": ("fast",)}, "'fast'"),
        ({"shapes": []}, "shape"),
    ],
)
def test_options_that_cannot_be_are_refused(fields, message):
    with pytest.raises(LowRankError, match=message):
        options(**fields)


def test_a_run_has_one_dtype_and_a_subject():
    mixed = tiny_encoder()
    for model in (mixed.dense, mixed.compressed):
        model.to(torch.bfloat16)
    with pytest.raises(LowRankError, match="one dtype per run"):
        run_benchmark([tiny_encoder(), mixed], options(shapes=[(1, 4)], forms=()))
    with pytest.raises(LowRankError, match="nothing to measure"):
        run_benchmark([], options())


def test_positions_are_checked_before_the_first_cell():
    said = []
    with pytest.raises(LowRankError, match="<= 16 must hold"):
        run_benchmark([tiny_encoder()], options(shapes=[(1, 4), (1, 17)]), said.append)
    assert said == []
