"""The ways in which a model can be run, by name. A new one is one entry of `FORMS`.

A form is built from a torch model and an example of its inputs, and is called as the model is:
`form(**inputs)`, with an output that has `logits`. A prompt's pass also gives it `use_cache` and,
if the model knows it, `logits_to_keep=1`: logits are then of the last position. One that cannot
be built says why.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import ExportError, LowRankError
from lowrank.folded import folded as make_folded
from lowrank.graphs import INPUTS
from lowrank.int8 import quantize_int8
from lowrank.pivoting import pivoted as make_pivoted

Run = Callable[..., Any]
Builder = Callable[[nn.Module, Mapping[str, Tensor]], Run]


class Unavailable(LowRankError):
    """A form that cannot be made of this model, on this device or in this environment."""


@dataclass(frozen=True, slots=True)
class Form:
    """How to build a form, and where it makes sense."""

    build: Builder
    dense: bool = True
    """Whether it says anything about a dense model."""
    decodes: bool = True
    """Whether it takes and returns a KV cache as the model does."""
    static_cache: bool = False
    """Whether decoding needs a cache of fixed size."""
    same_arithmetic: bool = True
    """Whether it makes the model's own multiply-accumulates, so that their number predicts it."""


def eager(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """The model as it is."""
    return model


def folded(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """Every pair of factors multiplied out: loads anywhere, and runs as fast as dense."""
    try:
        return make_folded(model).to(_device(model))
    except ExportError as error:
        raise Unavailable(str(error)) from error


def pivoted(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """A square block of each pair of factors left out (`lowrank.pivoted`)."""
    return make_pivoted(copy.deepcopy(model))


def int8(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """torch's dynamic quantization (`lowrank.int8`)."""
    if next(model.parameters()).dtype != torch.float32:
        raise Unavailable("dynamic quantization starts from float32")
    try:
        return quantize_int8(model)
    except LowRankError as error:
        raise Unavailable(str(error)) from error


def compiled(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """torch.compile, for these shapes; compiled by its first call."""
    return torch.compile(model, dynamic=False)


def frozen(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """torch.compile with the weights as constants, packed for the processor's products, and without
    Python between the kernels. Weights that change later do not change its answers."""
    return torch.compile(model, dynamic=False, options={"freezing": True, "cpp_wrapper": True})


def onnx(model: nn.Module, inputs: Mapping[str, Tensor]) -> Run:
    """ONNX Runtime on the CPU. A prompt's pass computes the logits of every position."""
    from lowrank.onnx import GRAPH, check_installed, save_onnx

    if _device(model).type != "cpu":
        raise Unavailable("ONNX Runtime is timed on the CPU only")
    names = tuple(name for name in INPUTS if name in inputs)
    try:
        check_installed()
        with tempfile.TemporaryDirectory() as folder:
            save_onnx(model.eval(), folder, names)
            session = _session(Path(folder) / GRAPH)
    except ExportError as error:
        raise Unavailable(str(error)) from error

    def run(logits_to_keep: int = 0, use_cache: bool = False, **given: Tensor) -> SimpleNamespace:
        arrays = {name: given[name].numpy() for name in names}
        logits = torch.from_numpy(session.run(["logits"], arrays)[0])
        return SimpleNamespace(logits=logits[:, -logits_to_keep:] if logits_to_keep else logits)

    return run


def _session(path: Path) -> Any:
    """With as many threads as torch has, so that both are given the same processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # its threads would go on spinning for a while, on the cores of whoever is timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


FORMS: dict[str, Form] = {
    "eager": Form(eager),
    "compiled": Form(compiled, static_cache=True),
    "frozen": Form(frozen, static_cache=True),
    "folded": Form(folded, dense=False, same_arithmetic=False),
    "pivoted": Form(pivoted, dense=False, same_arithmetic=False),
    "int8": Form(int8, same_arithmetic=False),
    "onnx": Form(onnx, decodes=False),
}
"""In the order of the tables. `eager` is what others are compared with."""
USUAL = ("eager", "folded", "int8")
"""Compilation takes minutes and a C++ compiler, so it is for those who ask."""
COMPILED = ("compiled", "frozen")


def check_forms(names: Mapping[str, object] | list[str] | tuple[str, ...]) -> list[str]:
    """The forms in the order of `FORMS`, with `eager`; or LowRankError for an unknown one."""
    for name in names:
        if name not in FORMS:
            raise LowRankError(f"a form is one of {[*FORMS]}, got {name!r}")
    return [name for name in FORMS if name in names or name == "eager"]
