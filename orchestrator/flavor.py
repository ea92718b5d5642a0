"""Our MLflow flavour: a logged model that comes back as the model itself.

    from orchestrator import flavor

    model, tokenizer = flavor.load_model("models:/demo-docs-lm@champion")

Beside it every logged model has MLflow's generic flavour, which answers tables of text
(`serving_model`): `mlflow.pyfunc.load_model` and `mlflow models serve` take that one, and need
nothing of this project installed. This module is what MLflow asks of a flavour; `tracking` logs
with it.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import RegistryError
from orchestrator.serving import MODEL_CODE, requirements

FLAVOR_NAME = "lowrank"
"""Of its entry in a logged model's MLmodel file."""


class Loaded(NamedTuple):
    """What `load_model` gives back."""

    model: Any
    """In evaluation mode, on the CPU."""
    tokenizer: Any


def save_model(path: str, mlflow_model: Any = None, *, folder: Path, **options: Any) -> None:
    """Write an exported model as a local MLflow model of both flavours, without pickle.

    Args:
        path: Folder to make.
        mlflow_model: MLflow's description to complete; a new one by default.
        folder: The export: config.json, model.safetensors, tokenizer, lowrank.json.
        options: To `mlflow.pyfunc.save_model`: signature, input_example.
    """
    import mlflow
    from mlflow.models.model import MLMODEL_FILE_NAME

    import lowrank

    mlflow_model = mlflow_model or mlflow.models.Model()
    mlflow.pyfunc.save_model(
        path=path,
        mlflow_model=mlflow_model,
        python_model=MODEL_CODE,
        artifacts={"model": str(folder)},
        # the library travels with the model: nothing but its dependencies is needed
        code_paths=[str(Path(lowrank.__file__).parent)],
        pip_requirements=requirements(),
        **options,
    )
    export = exported_folder(Path(path)).relative_to(path)
    mlflow_model.add_flavor(
        FLAVOR_NAME, model=export.as_posix(), version=version("lowrank-orchestrator")
    )
    mlflow_model.save(str(Path(path) / MLMODEL_FILE_NAME))


def load_model(model_uri: str, dst_path: str | None = None) -> Loaded:
    """Fetch a logged model and load it, every file checked against its digest.

    Args:
        model_uri: `models:/NAME@champion`, `models:/NAME/3`, `models:/m-...`, or a folder.
        dst_path: Where to download to; by default wherever MLflow does, and a store on this
            machine is read in place.

    Raises:
        RegistryError: It does not hold one exported model.
        ExportError: A file is missing, damaged, or not what its manifest says.
    """
    import mlflow

    from lowrank.hf import load_pretrained, load_tokenizer

    root = mlflow.artifacts.download_artifacts(model_uri, dst_path=dst_path)
    folder = exported_folder(Path(root))
    return Loaded(load_pretrained(folder), load_tokenizer(folder))


def exported_folder(root: Path) -> Path:
    """The exported model in a downloaded one.

    Raises:
        RegistryError: There is none, or more than one.
    """
    found = sorted(path.parent for path in root.rglob("lowrank.json"))
    if len(found) != 1:
        raise RegistryError(f"{root} must hold one exported model, found {len(found)}")
    return found[0]
