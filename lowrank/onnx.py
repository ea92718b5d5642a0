"""The ONNX form: a graph for ONNX Runtime, with two products for every factorized layer.

Needs the extra `onnx`. Batch and length are free; see `lowrank.graphs` for what a graph takes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.embedding import LowRankEmbedding
from lowrank.errors import ExportError
from lowrank.graphs import traceable, untraceable
from lowrank.linear import LowRankLinear
from lowrank.pivoted import PivotedLinear

GRAPH = "model.onnx"
PRODUCTS = ("MatMul", "Gemm")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """Raise ExportError, with what to install, unless the extra `onnx` is there."""
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError:
            raise ExportError(
                f"the ONNX form needs the package {package!r}: "
                "pip install 'lowrank-orchestrator[onnx]'"
            ) from None


def save_onnx(model: Any, folder: Path | str, names: tuple[str, ...]) -> Path:
    """Write `model.onnx` (and `model.onnx.data`, if it exceeds 2 GB).

    Args:
        model: A compacted transformers model in float32 on the CPU, in evaluation mode.
        folder: There already.
        names: Of the inputs, in order.

    Raises:
        ExportError: A package is missing, the model cannot be traced, or a factorized layer is not
            two products in the graph.
    """
    check_installed()
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtypes != {torch.float32}:
        raise ExportError(f"the ONNX form is made of float32 models, this one has {dtypes}")
    function, inputs = traceable(model, names)
    shapes = ({0: "batch", 1: "length"},) * len(inputs)
    with _quiet():
        try:
            program = torch.onnx.export(
                function,
                inputs,
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=list(names),
                output_names=["logits"],
                verbose=False,
            )
        except Exception as error:
            raise untraceable(model, error) from error
    assert program is not None
    graph = program.model_proto
    _share_transposed(graph)
    missing = expected_products(model) - products(graph)
    if missing:
        raise ExportError(f"factors of these shapes are no product in the graph: {list(missing)}")
    path = Path(folder) / GRAPH
    _write(graph, path)
    return path


def expected_products(model: nn.Module) -> Counter[tuple[int, int]]:
    """How many factors of each shape (smaller side first) a model multiplies by. The table of an
    embedding is looked up, only its second factor is multiplied by."""
    found: Counter[tuple[int, int]] = Counter()
    for module in model.modules():
        if isinstance(module, LowRankLinear | PivotedLinear):
            found[_sides(module.weight.shape)] += 1
        if isinstance(module, LowRankLinear | PivotedLinear | LowRankEmbedding):
            found[_sides(module.projection.shape)] += 1
    return found


def products(graph: Any) -> Counter[tuple[int, int]]:
    """How many stored matrices of each shape (smaller side first) an ONNX model multiplies by."""
    matrices = {i.name: tuple(i.dims) for i in graph.graph.initializer if len(i.dims) == 2}
    for node in graph.graph.node:
        if node.op_type == "Transpose" and node.input[0] in matrices:
            matrices[node.output[0]] = matrices[node.input[0]][::-1]
    found: Counter[tuple[int, int]] = Counter()
    for node in graph.graph.node:
        if node.op_type in PRODUCTS:
            found.update(_sides(matrices[name]) for name in node.input[:2] if name in matrices)
    return found


def num_stored_floats(path: Path | str) -> int:
    """Floating-point numbers in an ONNX file, constants of the graph included.

    Raises:
        ExportError: One of them is not finite, or the file is damaged.
    """
    import numpy as np
    import onnx

    check_installed()
    try:
        graph = onnx.load(path)
    except Exception as error:
        raise ExportError(f"{path}: not a whole ONNX file: {error}") from error
    total = 0
    for tensor in graph.graph.initializer:
        values = _values(tensor)
        if np.issubdtype(values.dtype, np.floating):
            # masks are filled with minus infinity, which is one number
            if values.size > 1 and not np.isfinite(values).all():
                raise ExportError(f"{path}: {tensor.name} holds NaN or infinity")
            total += values.size
    return total


def _sides(shape: Any) -> tuple[int, int]:
    first, second = sorted(int(size) for size in shape)
    return first, second


def _share_transposed(graph: Any) -> None:
    """Store a matrix once where a tied layer has it and, transposed, another.

    The exporter transposes weights ahead, which would store the table of an embedding twice.
    """
    from onnx import helper

    seen: dict[bytes, str] = {}
    copies: dict[str, str] = {}
    matrices = [t for t in graph.graph.initializer if len(t.dims) == 2 and t.data_type == 1]
    for tensor in matrices:
        values = _values(tensor)
        twin = seen.get(_fingerprint(values.T))
        if twin is not None:
            copies[tensor.name] = twin
        else:
            seen.setdefault(_fingerprint(values), tensor.name)
    for number, (copy, original) in enumerate(copies.items()):
        tensor = next(t for t in matrices if t.name == copy)
        graph.graph.initializer.remove(tensor)
        node = helper.make_node("Transpose", [original], [copy], f"tied_{number}", perm=[1, 0])
        graph.graph.node.insert(0, node)


def _values(tensor: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _fingerprint(values: Any) -> bytes:
    import hashlib

    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).digest()


def _write(graph: Any, path: Path) -> None:
    import onnx

    large = graph.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF
    location = f"{path.name}.data" if large else None
    onnx.save_model(graph, path, save_as_external_data=large, location=location)
    onnx.checker.check_model(str(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages and on constants it folds."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
