"""How a compressed model is packed for MLflow: signature, requirements, entry code.

The entry code is `serving_model.py`, logged as code (models-from-code): the logged model holds
safetensors, JSON and source, and nothing is unpickled when it loads.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL_CODE = str(Path(__file__).with_name("serving_model.py"))

RUNTIME_PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def requirements() -> list[str]:
    """Exact versions of what `lowrank` needs to load a model."""
    return [f"{name}=={version(name).split('+')[0]}" for name in RUNTIME_PACKAGES]


def input_example(task_kind: str) -> Any:
    """A row that the served model answers, kept beside it: what a request looks like."""
    import pandas as pd

    if task_kind == "language-modelling":
        return pd.DataFrame({"prompt": ["The"]})
    return pd.DataFrame({"text": ["A short text."], "text_pair": ["Another one."]})


def signature(task_kind: str) -> Any:
    """Input and output columns of the served model."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    if task_kind == "language-modelling":
        return ModelSignature(
            inputs=Schema([ColSpec("string", "prompt")]),
            outputs=Schema([ColSpec("string", "text")]),
            params=ParamSchema([ParamSpec("max_new_tokens", "integer", 64)]),
        )
    outputs = [ColSpec("double", "score")]
    if task_kind == "classification":
        outputs.insert(0, ColSpec("string", "label"))
    return ModelSignature(
        inputs=Schema([ColSpec("string", "text"), ColSpec("string", "text_pair", required=False)]),
        outputs=Schema(outputs),
    )
