"""Computes the logits of an exported model, in a process that knows nothing else of it.

    python -P lowrank/answer.py FOLDER CASES.safetensors LOGITS.safetensors

Run by path, and not imported: for every form but the factorized one this package cannot be imported
here, and for a graph transformers cannot either. What a form promises to need is all that there is.

Prints one line of JSON at the end: {"routes": [...]}, or {"error": "..."} with exit code 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FORMS = {"lowrank.json": "factorized", "model.onnx": "onnx", "model.pt2": "pt2"}
"""What a folder holds, and what it then is; else it is a plain folder of transformers."""


def form_of(folder: Path) -> str:
    """The form of an exported folder."""
    return next((form for name, form in FORMS.items() if (folder / name).exists()), "folded")


def answer(folder: Path, cases: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Logits of every case by every route that the form has, [numpy or torch] each."""
    form = form_of(folder)
    if form == "onnx":
        return {"onnxruntime": _by_onnxruntime(folder, cases)}
    import torch

    with torch.inference_mode():
        if form == "pt2":
            return {"torch.export.load": _by_torch(folder, cases)}
        found = {"from_pretrained": _by_transformers(folder, cases)}
        if form == "factorized":
            from lowrank.hf import load_pretrained

            model: Any = load_pretrained(folder)
            found["load_pretrained"] = [model(**case).logits for case in cases]
        return found


def _by_transformers(folder: Path, cases: list[dict[str, Any]]) -> list[Any]:
    import torch
    import transformers

    if form_of(folder) == "factorized":
        import lowrank.auto  # noqa: F401 - the registration

        manifest = json.loads((folder / "lowrank.json").read_text(encoding="utf-8"))
        auto_class = getattr(transformers, manifest["metadata"]["auto_class"])
    else:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        auto_class = getattr(transformers, names[0])
    model, info = auto_class.from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False
    )
    for what, found in info.items():
        if found:
            raise ValueError(f"{what}: {', '.join(sorted(map(str, found))[:5])}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")
    model.eval()
    return [model(**case).logits for case in cases]


def _by_torch(folder: Path, cases: list[dict[str, Any]]) -> list[Any]:
    import torch

    program = torch.export.load(folder / "model.pt2")
    for name, tensor in program.state_dict.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")
    model = program.module()
    return [model(*case.values()) for case in cases]


def _by_onnxruntime(folder: Path, cases: list[dict[str, Any]]) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    return [session.run(["logits"], case)[0] for case in cases]


def _cases(path: Path, names: list[str], framework: str) -> list[dict[str, Any]]:
    """Inputs by number and name, in the order of `names`."""
    from safetensors import safe_open

    with safe_open(path, framework=framework) as file:
        keys = set(file.keys())
        numbers = sorted({int(key.partition(".")[0]) for key in keys})
        return [
            {
                name: file.get_tensor(f"{number}.{name}")
                for name in names
                if f"{number}.{name}" in keys
            }
            for number in numbers
        ]


def main(arguments: list[str]) -> int:
    folder, cases, out = map(Path, arguments)
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    form = form_of(folder)
    is_graph = form == "onnx"
    blocked = {"factorized": (), "folded": ("lowrank",)}.get(form, ("lowrank", "transformers"))
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]  # None stops an import
    try:
        found = answer(folder, _cases(cases, inputs, "np" if is_graph else "pt"))
        tensors = {
            f"{route}.{number}": logits
            for route, several in found.items()
            for number, logits in enumerate(several)
        }
        if is_graph:
            from safetensors.numpy import save_file as save_arrays

            save_arrays(tensors, out)
        else:
            from safetensors.torch import save_file

            save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, out)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    print(json.dumps({"routes": list(found)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
