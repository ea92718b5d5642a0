"""Sizes recounted from files, against counts made by hand and against files that were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lowrank import ExportError
from lowrank.counting import Densities, Size
from lowrank.forms import described_layers
from lowrank.hf import save_pretrained
from lowrank.sizes import check_density, file_size, sizes_of
from tests.lowrank.test_auto import MODELS, compacted


@pytest.mark.parametrize("kind", ["gpt2 with embedding", "bert", "adaptive decoder", "narrow bert"])
def test_both_models_are_counted(kind, tmp_path: Path):
    model, auto_class = compacted(kind)
    dense = MODELS[kind][0]()
    folder = save_pretrained(model, tmp_path / "small", auto_class)
    small_sizes, dense_sizes = sizes_of(folder)
    written = save_pretrained(dense, tmp_path / "dense", auto_class) / "model.safetensors"
    assert dense_sizes.num_bytes == written.stat().st_size
    assert dense_sizes.num_parameters == sum(p.numel() for p in dense.parameters())
    assert small_sizes.num_bytes == (folder / "model.safetensors").stat().st_size
    assert small_sizes.num_parameters == sum(p.numel() for p in model.parameters())
    described = described_layers(model)
    names = [name for name, layer in described.items() if not layer.get("tied_to")]
    for sizes, counted in ((small_sizes, model), (dense_sizes, dense)):
        matrices = [p for n in names for p in counted.get_submodule(n).parameters() if p.ndim > 1]
        assert sizes.num_prunable == sum(matrix.numel() for matrix in matrices)
    densities = Densities.of(small_sizes, dense_sizes)
    assert 0 < densities.prunable < 1
    assert densities.macs < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_files_size_is_known_before_it_is_written(dtype, tmp_path: Path):
    tensors = {f"layer.{n}.weight": torch.ones(n, 3).to(dtype) for n in range(1, 12)}
    tensors["é"] = torch.ones(2, dtype=torch.int32)
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    assert file_size(tensors) == (tmp_path / "x").stat().st_size


def test_a_model_that_is_too_large_is_refused():
    small, dense = (
        Size(num_parameters=n, num_prunable=n, num_bytes=n, macs_per_token=n) for n in (301, 1000)
    )
    densities = Densities.of(small, dense)
    assert densities == Densities(prunable=0.301, parameters=0.301, bytes=0.301, macs=0.301)
    check_density("x", densities, None)
    check_density("x", densities, 0.301)
    with pytest.raises(ExportError, match=r"x: realized density <= target must hold, got 0.301000"):
        check_density("x", densities, 0.3)
