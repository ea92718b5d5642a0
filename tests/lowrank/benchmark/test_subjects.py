from __future__ import annotations

import copy

import pytest
import torch

from lowrank import FixedRank, Pruner, Start
from lowrank.benchmark.subjects import (
    from_config,
    from_folders,
    uniform_rank,
    with_random_factors,
)
from lowrank.counting import num_parameters
from lowrank.density import LayerShape
from lowrank.errors import LowRankError
from lowrank.hf import save_pretrained
from lowrank.linear import LowRankLinear
from tests.lowrank import tiny_bert, tiny_gpt2, token_ids
from tests.lowrank.benchmark import tiny_encoder

ENCODER, DECODER = "AutoModelForSequenceClassification", "AutoModelForCausalLM"


@pytest.mark.parametrize("density", [0.5, 0.3, 0.1, 0.9])
@pytest.mark.parametrize("multiple", [1, 8])
def test_uniform_ranks_are_at_or_under_the_density_and_no_more_would_fit(density, multiple):
    for shape in (LayerShape(768, 768), LayerShape(768, 3072), LayerShape(768, 2304)):
        rank = uniform_rank(shape, density, multiple)
        budget = density * shape.num_dense
        assert rank % multiple == 0
        assert (
            rank * shape.num_per_component <= budget < (rank + multiple) * shape.num_per_component
        )


def test_a_rank_below_the_multiple_stays_and_none_is_zero():
    assert uniform_rank(LayerShape(16, 16), 0.5, 8) == 4
    assert uniform_rank(LayerShape(16, 16), 0.01, 8) == 1
    with pytest.raises(LowRankError, match="rank_multiple >= 1 must hold, got 0"):
        uniform_rank(LayerShape(16, 16), 0.5, 0)


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_random_factors_take_the_place_of_the_blocks_matrices(make):
    dense = make()
    before = copy.deepcopy(dense.state_dict())
    small = with_random_factors(dense, 0.5, rank_multiple=1)
    names = [n for n, m in small.named_modules() if type(m) is LowRankLinear]
    assert len(names) == 2 * (4 if make is tiny_gpt2 else 6)
    assert not any("classifier" in n or "pooler" in n or "lm_head" in n for n in names)
    assert small(token_ids()).logits.isfinite().all()
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_at_density_one_nothing_is_factorized():
    dense = tiny_bert()
    small = with_random_factors(dense, 1.0, rank_multiple=1)
    assert torch.equal(small(token_ids()).logits, dense(token_ids()).logits)


def test_sizes_are_counted_in_the_models():
    subject = tiny_encoder(density=0.5)
    sizes = subject.sizes()
    assert sizes["dense_parameters"] == num_parameters(subject.dense)
    # 16 x 16: rank 4; 16 x 32: rank 5
    matrices, stored = 4 * 256 + 2 * 512, 4 * 4 * 32 + 2 * 5 * 48
    assert sizes["density_of_these"] == pytest.approx(stored / matrices)
    saved = sizes["dense_parameters"] - sizes["compressed_parameters"]
    assert saved == 2 * (matrices - stored)
    assert sizes["compressed_layers"] == 12


def test_a_preset_at_a_density(tmp_path):
    config = tmp_path / "config.json"
    tiny_bert().config.save_pretrained(tmp_path)
    subject = from_config(str(config), 0.4, kind="encoder", rank_multiple=1)
    assert subject.name == f"{config} at density 0.4"
    assert 0.3 < subject.sizes()["density_of_these"] <= 0.4


def test_folders_are_what_was_exported(tmp_path):
    dense = tiny_gpt2()
    small = Pruner(copy.deepcopy(dense), FixedRank(density=0.4, start=Start())).finish()
    for name, model in (("dense", dense), ("small", small)):
        save_pretrained(model, tmp_path / name, DECODER)
    subject = from_folders(tmp_path / "dense", tmp_path / "small")
    assert (subject.kind, subject.name) == ("decoder", "small")
    assert subject.folders == (tmp_path / "dense", tmp_path / "small")
    assert torch.equal(subject.dense(token_ids()).logits, dense(token_ids()).logits)
    assert torch.equal(subject.compressed(token_ids()).logits, small(token_ids()).logits)
    cast = from_folders(tmp_path / "dense", tmp_path / "small", torch.bfloat16)
    assert {p.dtype for p in cast.compressed.parameters()} == {torch.bfloat16}


def test_folders_of_two_architectures_are_refused(tmp_path):
    save_pretrained(tiny_gpt2(), tmp_path / "a", DECODER)
    save_pretrained(tiny_bert(), tmp_path / "b", ENCODER)
    with pytest.raises(LowRankError, match="GPT2LMHeadModel and BertForSequenceClassification"):
        from_folders(tmp_path / "a", tmp_path / "b")
