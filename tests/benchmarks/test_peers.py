"""The comparison with peers, on an encoder of two small layers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_pruning", reason="the extra `bench` is not installed")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers.py"
SIZES = ["--layers", "2", "--width", "32", "--heads", "4", "--inner", "64", "--vocabulary", "50"]
SIZES += ["--batch", "2", "--length", "8", "--repeats", "7", "--threads", "1"]


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("peers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def options(peers):
    before, sys.argv = sys.argv, ["peers.py", "--density", "0.5", *SIZES]
    try:
        return peers.arguments()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def dense(peers, options):
    torch.manual_seed(0)
    return peers.encoder(options)


def test_the_script_writes_a_table_and_its_figures(peers, monkeypatch, tmp_path):
    out, page = tmp_path / "peers.json", tmp_path / "peers.md"
    words = ["peers.py", "--density", "0.5", "--density", "0.25", *SIZES]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(out), "--markdown", str(page)])
    peers.main()
    result = json.loads(out.read_text())
    names = ["dense", "SVD by hand", "lowrank", "Torch-Pruning", "int8", "lowrank + int8"]
    assert [row["model"] for row in result["rows"]] == names * 2
    assert result["fingerprint"]["torch-pruning"]
    for row in result["rows"]:
        assert len(row["samples_ms"]) == 7
        assert (row["error"] == 0) == (row["model"] == "dense")
        if row["block_density"] is not None and row["model"] != "dense":
            # at or under the density, and near it
            assert 0.85 * row["density"] < row["block_density"] <= row["density"]
            assert row["promised"] > 1
    sizes = {row["model"]: row["bytes"] for row in result["rows"][:6]}
    assert sizes["lowrank + int8"] < sizes["int8"] < sizes["dense"]
    assert page.read_text().count("| Torch-Pruning |") == 2


def test_svd_by_hand_is_the_best_product_of_its_rank(peers, dense):
    small = peers.svd_by_hand(dense, 0.5)
    name = "bert.encoder.layer.1.output.dense"
    down, up = small.get_submodule(name)
    weight = dense.get_submodule(name).weight.double()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = down.out_features
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    torch.testing.assert_close(up.weight.double() @ down.weight.double(), best, atol=1e-6, rtol=0)


def test_calibrated_factors_have_less_error_in_a_layers_output(peers, options, dense):
    """On the inputs they were fitted to; a layer may have one component more than by hand."""
    batches = [peers.inputs(dense, options, seed) for seed in range(3)]
    ours, by_hand = peers.calibrated(dense, 0.5, batches), peers.svd_by_hand(dense, 0.5)
    name = "bert.encoder.layer.0.attention.self.query"
    with torch.no_grad():
        x = torch.cat([dense.bert.embeddings(batch["input_ids"]) for batch in batches])
        wanted = dense.get_submodule(name)(x)
        errors = [float((m.get_submodule(name)(x) - wanted).norm()) for m in (ours, by_hand)]
    assert errors[0] < errors[1]


def test_torch_pruning_narrows_heads_and_inner_layers_alike(peers, options, dense):
    small = peers.torch_pruned(dense, 0.5, peers.inputs(dense, options, 0))
    for block in small.bert.encoder.layer:
        assert block.attention.self.query.weight.shape == (16, 32)
        assert block.attention.self.attention_head_size == 4
        assert block.attention.output.dense.weight.shape == (32, 16)
        assert block.intermediate.dense.weight.shape == (32, 32)
    assert dense.bert.encoder.layer[0].intermediate.dense.weight.shape == (64, 32)
    assert small(**peers.inputs(dense, options, 1)).logits.isfinite().all()
