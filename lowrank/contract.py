"""The contract of an exported model: what it must show, from its files, in a fresh process.

1. Loaded by every route that its form has, it gives the logits of the model in memory.
2. No tensor is missing, unexpected, or not finite.
3. Its size, recounted from the file, is at or under what was asked for.

The model in memory leaves its answers beside the weights when it is exported (`save_reference`), so
that the contract can be checked anywhere and at any time, such as before a model is promoted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank.answer import form_of
from lowrank.errors import ExportError
from lowrank.fresh import run_fresh
from lowrank.graphs import example_inputs, input_names, longest_input

REFERENCE = "reference.safetensors"
SHAPES = ((1, 4), (3, 8))
"""Batch and length of the cases: with one row and several, with padding and without, few enough
that the logits of a large vocabulary stay small (50,000 tokens: 5.6 MB)."""
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2, torch.float64: 1e-12}
"""Largest difference, relative to the largest absolute logit. float32's is the promise; the others
are about ten of their rounding units (9.8e-4 and 7.8e-3), for a folded layer rounds once where two
factors round twice."""
ONNX_TOLERANCE = 1e-4
"""ONNX Runtime in float32: its fused kernels sum in another order and approximate the error
function; on small models about 1e-6 was seen."""

Case = dict[str, Tensor]


@dataclass(frozen=True)
class Reference:
    """What a model in memory answered."""

    inputs: list[Case]
    logits: list[Tensor]


@dataclass(frozen=True)
class Verdict:
    """A contract that was kept."""

    form: str
    routes: tuple[str, ...]
    error: float
    """Largest over all cases and routes, relative to the largest absolute logit of its case."""
    tolerance: float


def reference_of(
    model: Any, tokenizer: Any = None, shapes: Sequence[tuple[int, int]] = SHAPES
) -> Reference:
    """Logits of a model, gated or compacted, on the CPU and in evaluation mode.

    Args:
        model: A transformers model; left as it is.
        tokenizer: Says which inputs the model is given.
        shapes: Batch and length of each case.
    """
    names = input_names(model, tokenizer)
    longest = longest_input(model)
    inputs = [
        example_inputs(model, names, batch, min(length, longest), seed=number)
        for number, (batch, length) in enumerate(shapes)
    ]
    training, device = model.training, next(model.parameters()).device
    model.eval().to("cpu")
    try:
        with torch.inference_mode():
            logits = [model(**case).logits.clone() for case in inputs]
    finally:
        model.to(device).train(training)
    return Reference(inputs, logits)


def save_reference(reference: Reference, folder: Path | str) -> Path:
    """Write `reference.safetensors` into an exported folder."""
    path = Path(folder) / REFERENCE
    answers = {f"{n}.logits": logits.contiguous() for n, logits in enumerate(reference.logits)}
    save_file(_numbered(reference.inputs) | answers, path)
    return path


def load_reference(folder: Path | str) -> Reference:
    """Read `reference.safetensors`.

    Raises:
        ExportError: There is none, or it is damaged.
    """
    path = Path(folder) / REFERENCE
    if not path.is_file():
        raise ExportError(f"{path}: no such file; export the model again to have one")
    found: dict[int, Case] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                number, _, name = key.partition(".")
                found.setdefault(int(number), {})[name] = file.get_tensor(key)
        cases = [found[number] for number in sorted(found)]
        return Reference(cases, [case.pop("logits") for case in cases])
    except Exception as error:
        raise ExportError(f"{path}: cannot be read: {error}") from error


def check_answers(model: Any, reference: Reference, place: str) -> float:
    """Compare a loaded model with the one in memory that left the reference.

    Args:
        model: Loaded from its files, on the CPU.
        reference: What it must answer.
        place: Of the files, and by which route, for the message.

    Returns:
        The largest difference, relative to the largest absolute logit of its case.

    Raises:
        ExportError: It exceeds the tolerance of the logits' dtype, or is no number.
    """
    with torch.inference_mode():
        logits = [model(**case).logits for case in reference.inputs]
    return _compare(logits, reference, TOLERANCES[reference.logits[0].dtype], place)


def _compare(logits: list[Tensor], reference: Reference, tolerance: float, place: str) -> float:
    largest = 0.0
    for found, wanted in zip(logits, reference.logits, strict=True):
        error = _relative_error(found, wanted)
        if not error <= tolerance:
            raise ExportError(
                f"{place}: logits must be within {tolerance:g} of the model's in memory, "
                f"got {error:.2g}"
            )
        largest = max(largest, error)
    return largest


def verify(folder: Path | str, reference: Reference | nn.Module | None = None) -> Verdict:
    """Check that an exported model of any form answers like the model in memory.

    Args:
        folder: Of the export.
        reference: What it must answer, or the model itself, gated or compacted; by default what the
            folder's `reference.safetensors` says.

    Raises:
        ExportError: The contract is not kept; the message says in what.
    """
    folder = Path(folder)
    if reference is None:
        reference = load_reference(folder)
    elif isinstance(reference, nn.Module):
        reference = reference_of(reference)
    form = form_of(folder)
    answers = fresh_answers(folder, reference.inputs)
    tolerance = ONNX_TOLERANCE if form == "onnx" else TOLERANCES[reference.logits[0].dtype]
    largest = max(
        _compare(logits, reference, tolerance, f"{folder} by {route}")
        for route, logits in answers.items()
    )
    return Verdict(form, tuple(answers), largest, tolerance)


def fresh_answers(folder: Path | str, inputs: list[Case]) -> dict[str, list[Tensor]]:
    """Logits of an exported model by every route of its form, from a process of its own.

    Raises:
        ExportError: The process could not load or run it; with its message.
    """
    script = Path(__file__).with_name("answer.py")
    with tempfile.TemporaryDirectory(prefix="lowrank-contract-") as temporary:
        cases, out = Path(temporary) / "cases.safetensors", Path(temporary) / "logits.safetensors"
        save_file(_numbered(inputs), cases)
        arguments = [script, Path(folder).absolute(), cases, out]
        done = run_fresh(["-P", *map(str, arguments)], Path(temporary), CUDA_VISIBLE_DEVICES="")
        last = (done.stdout.strip().splitlines() or [""])[-1]
        try:
            said = json.loads(last)
        except ValueError:
            tail = " ".join(done.stderr.strip().splitlines()[-1:])
            said = {"error": f"it ended with code {done.returncode}: {tail}"}
        if "error" in said:
            raise ExportError(f"{folder}: in a fresh process: {said['error']}")
        with safe_open(out, framework="pt") as file:
            return {
                route: [file.get_tensor(f"{route}.{n}") for n in range(len(inputs))]
                for route in said["routes"]
            }


def _numbered(inputs: list[Case]) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": tensor.contiguous()
        for number, case in enumerate(inputs)
        for name, tensor in case.items()
    }


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    """NaN where a value is not a number or the shapes differ."""
    if found.shape != wanted.shape:
        return float("nan")
    difference = (found.double() - wanted.double()).abs().max()
    return float(difference / wanted.double().abs().max())
