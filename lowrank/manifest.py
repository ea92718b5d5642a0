"""The manifest of a saved model, `lowrank.json`: its structure and what its weights file holds.

It comes from outside: everything in it is checked before it is used. Older versions are read as the
current one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lowrank.errors import ExportError
from lowrank.forms import check_layer
from lowrank.plain_json import read_json

T = TypeVar("T")

SCHEMA_VERSION = 3
"""1 had low-rank layers only, without a form; 2 had neither embeddings nor narrow layers, and other
names for factors. Both are still read."""
MANIFEST = "lowrank.json"
MANIFEST_TYPES = {
    "schema_version": int,
    "weights_sha256": str,
    "layers": dict,
    "aliases": dict,
    "tensors": dict,
    "metadata": dict,
}


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a saved model, checked for completeness."""
    path = Path(folder) / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise ExportError(f"{path}: no such file; not a finished lowrank export") from None
    except (ValueError, OSError) as error:
        raise ExportError(f"{path}: cannot be read as JSON: {error}") from error
    if isinstance(manifest, dict):
        manifest.pop("former_names", None)  # ours to say, not the file's
        if manifest.get("schema_version") == 1:
            manifest = _from_version_1(manifest)
        if manifest.get("schema_version") == 2:
            manifest = _from_version_2(manifest)
    if not isinstance(manifest, dict) or not MANIFEST_TYPES.keys() <= manifest.keys():
        raise ExportError(f"{path}: a manifest has the keys {sorted(MANIFEST_TYPES)}")
    for key, wanted in MANIFEST_TYPES.items():
        if not isinstance(manifest[key], wanted):
            raise ExportError(f"{path}: {key} must be of type {wanted.__name__}")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise ExportError(
            f"{path}: schema version {SCHEMA_VERSION} is read here, "
            f"got {manifest['schema_version']}"
        )
    for name, layer in manifest["layers"].items():
        check_layer(f"{path}: layer {name!r}", layer)
    for name, entry in manifest["tensors"].items():
        if not _is_type_and_shape(entry):
            raise ExportError(f"{path}: tensor {name!r} must have a type and a shape")
    for alias, name in manifest["aliases"].items():
        if not isinstance(name, str):
            raise ExportError(f"{path}: alias {alias!r} must name a tensor, got {name!r}")
    return manifest


def _is_type_and_shape(entry: Any) -> bool:
    match entry:
        case [str(), [*sizes]]:
            return all(type(size) is int for size in sizes)
    return False


def _from_version_1(manifest: dict[str, Any]) -> dict[str, Any]:
    layers = manifest.pop("low_rank", None)
    if isinstance(layers, dict):
        layers = {
            name: {"form": "low-rank", **layer} if isinstance(layer, dict) else layer
            for name, layer in layers.items()
        }
    return manifest | {"schema_version": 2, "layers": layers}


def _from_version_2(manifest: dict[str, Any]) -> dict[str, Any]:
    """Factors were layers of their own, `up` and `down`, when there were no embeddings."""
    layers = manifest.get("layers")
    former: dict[str, str] = {}
    for name in layers if isinstance(layers, dict) else ():
        former |= {
            f"{name}.up.weight": f"{name}.weight",
            f"{name}.up.bias": f"{name}.bias",
            f"{name}.down.weight": f"{name}.projection",
        }
    return manifest | {"schema_version": SCHEMA_VERSION, "former_names": former}


def named_as_in_model(
    folder: Path | str, manifest: dict[str, Any], stored: Mapping[str, T]
) -> dict[str, T]:
    """What is stored, once for every name that a model has for it.

    Args:
        folder: For the message.
        manifest: As `read_manifest` returns it.
        stored: Tensors, or anything else, by the names in the file.

    Raises:
        ExportError: An alias names nothing that is stored.
    """
    named = dict(stored)
    for alias, name in manifest["aliases"].items():
        if name not in stored:
            raise ExportError(
                f"{Path(folder) / MANIFEST}: alias {alias!r} of a missing tensor {name!r}"
            )
        named[alias] = stored[name]
    former = manifest.get("former_names", {})
    return {former.get(name, name): each for name, each in named.items()}
