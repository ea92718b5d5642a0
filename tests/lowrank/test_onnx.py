"""The ONNX form: two products per factorized layer, any batch and length, the same logits."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank import ExportError
from lowrank.embedding import LowRankEmbedding
from lowrank.graphs import Logits, example_inputs, input_names
from lowrank.linear import LowRankLinear
from lowrank.onnx import PACKAGES, check_installed, expected_products, products, save_onnx
from lowrank.pivoted import PivotedLinear
from tests.lowrank import relative_error, tiny_gpt2
from tests.lowrank.test_auto import compacted
from tests.lowrank.test_graphs import SHAPES

for package in PACKAGES:
    pytest.importorskip(package, reason="the extra `onnx` is not installed")

KINDS = [
    "gpt2 with embedding",
    "llama",
    "bert with embedding",
    "narrow bert",
    "sliced gpt2",
    "pivoted bert",
]
FACTORED = LowRankLinear | PivotedLinear


@pytest.fixture(params=KINDS, scope="module")
def exported(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[Any, Path]:
    model, _ = compacted(request.param)
    folder = tmp_path_factory.mktemp("onnx")
    return model, save_onnx(model, folder, input_names(model))


@torch.no_grad()
def test_onnx_runtime_computes_the_logits_of_any_batch_and_length(exported):
    import onnxruntime

    model, path = exported
    names = input_names(model)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(names)
    assert {tuple(i.shape) for i in session.get_inputs()} == {("batch", "length")}
    for batch, length in SHAPES:
        inputs = example_inputs(model, names, batch, length, seed=batch)
        (found,) = session.run(["logits"], {n: t.numpy() for n, t in inputs.items()})
        wanted = Logits(model, names)(*inputs.values())
        assert found.shape == tuple(wanted.shape)
        assert relative_error(torch.from_numpy(found), wanted) < 1e-5


def test_factors_that_become_one_matrix_on_the_way_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """As a layer does that keeps its product: the graph would be as large as the dense model."""
    model, _ = compacted("llama")
    for layer in model.modules():
        if isinstance(layer, LowRankLinear):
            layer.register_buffer("product", (layer.weight @ layer.projection).detach())
    monkeypatch.setattr(LowRankLinear, "forward", lambda self, x: x @ self.product.t())
    with pytest.raises(ExportError, match="factors of these shapes are no product in the graph"):
        save_onnx(model, tmp_path, input_names(model))
    assert not any(tmp_path.iterdir())


def test_every_factorized_layer_is_two_products(exported):
    import onnx

    model, path = exported
    graph = onnx.load(path)
    assert expected_products(model) <= products(graph)
    layers = [m for m in model.modules() if isinstance(m, FACTORED)]
    tables = [m for m in model.modules() if isinstance(m, LowRankEmbedding)]
    dense = [
        m
        for m in model.modules()
        if not isinstance(m, FACTORED | LowRankEmbedding)
        and (isinstance(m, torch.nn.Linear) or type(m).__name__ in ("Conv1D", "SlicedLinear"))
    ]
    # counted by hand: two per factorized layer, one per embedding (the other is a look-up)
    assert products(graph).total() == 2 * len(layers) + len(tables) + len(dense)
    assert expected_products(model).total() == 2 * len(layers) + len(tables)
    full = {tuple(sorted((m.in_features, m.out_features))) for m in layers}
    assert not full & set(products(graph)) - {tuple(sorted(m.weight.shape)) for m in dense}


def test_ties_are_stored_once(tmp_path: Path):
    import onnx

    model, _ = compacted("gpt2 with embedding")
    graph = onnx.load(save_onnx(model, tmp_path, input_names(model)))
    shapes = Counter(tuple(sorted(i.dims)) for i in graph.graph.initializer if len(i.dims) == 2)
    table = tuple(sorted(model.transformer.wte.weight.shape))
    assert shapes[table] == 1


def test_a_product_that_is_missing_is_seen(tmp_path: Path):
    import onnx

    model, _ = compacted("bert")
    graph = onnx.load(save_onnx(model, tmp_path, input_names(model)))
    node = next(n for n in graph.graph.node if n.op_type == "MatMul")
    node.op_type = "Add"
    whole = expected_products(model)
    assert (whole - products(graph)).total() <= 1
    graph.graph.node.remove(next(n for n in graph.graph.node if n.op_type == "MatMul"))
    assert whole - products(graph)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_extra_to_install_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"'{package}': pip install 'lowrank-orchestrator\[onnx"):
        check_installed()
    with pytest.raises(ExportError, match=r"lowrank-orchestrator\[onnx\]"):
        save_onnx(tiny_gpt2(), tmp_path, ("input_ids",))


def test_half_precision_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"made of float32 models, this one has \{torch.bfloat"):
        save_onnx(tiny_gpt2().to(torch.bfloat16), tmp_path, ("input_ids",))
