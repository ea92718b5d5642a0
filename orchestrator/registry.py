"""The only module that moves aliases in the MLflow model registry.

`candidate`: the model that the last campaign picked. `champion`: the one that passed the gates
and is in use. `previous`: the champion before it, where a rollback goes.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from orchestrator.errors import RegistryError, redact_uri
from orchestrator.flavor import exported_folder
from orchestrator.records import ModelRecord

logger = logging.getLogger(__name__)

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"

ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
"""MLflow's codes for a missing model and for a missing alias or version."""


class Registry:
    """A model registry.

    Args:
        uri: MLflow registry URI.
        tracking_uri: Where logged models live; by default the same.
    """

    def __init__(self, uri: str, tracking_uri: str | None = None) -> None:
        import mlflow

        self.uri = uri
        self.tracking_uri = tracking_uri = tracking_uri or uri
        # MLflow resolves `models:/m-...` through its process-wide setting, not through the client
        mlflow.set_tracking_uri(tracking_uri)
        mlflow.set_registry_uri(uri)
        self.client = mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=uri)

    def register(self, name: str, record: ModelRecord, tags: dict[str, str]) -> str:
        """A version for a logged model; the one it already has, if it has one.

        Returns:
            The version, as MLflow writes it.
        """
        if record.model_uri is None:
            raise RegistryError(f"trial {record.key} has no logged model to register")
        self._ensure_model(name)
        version = self._version_of(name, record.model_uri)
        if version is None:
            made = self.client.create_model_version(
                name,
                source=record.model_uri,
                run_id=record.mlflow_run_id,
                model_id=record.model_uri.removeprefix("models:/"),
            )
            version = str(made.version)
        for key, value in (_tags_of(record) | tags).items():
            self.client.set_model_version_tag(name, version, key, value)
        return version

    def set_candidate(self, name: str, version: str) -> None:
        self.client.set_registered_model_alias(name, CANDIDATE, version)

    def promote(self, name: str, version: str, tags: dict[str, str] | None = None) -> str | None:
        """Make a version the champion and remember the one before it.

        The alias `champion` moves last: a process that dies on the way leaves the old champion.

        Returns:
            The version that was champion until now, if it was another.
        """
        for key, value in (tags or {}).items():
            self.client.set_model_version_tag(name, version, key, value)
        before = self.version(name, CHAMPION)
        if before == version:
            return None
        if before is not None:
            self.client.set_registered_model_alias(name, PREVIOUS, before)
        self.client.set_registered_model_alias(name, CHAMPION, version)
        return before

    def rollback(self, name: str) -> tuple[str, str]:
        """Give the champion's place back to the previous one; the two change places.

        Returns:
            The champion from now on, and the one that stepped back.

        Raises:
            RegistryError: There is no champion, or none before it.
        """
        champion, previous = self.version(name, CHAMPION), self.version(name, PREVIOUS)
        if champion is None or previous is None:
            missing = CHAMPION if champion is None else PREVIOUS
            raise RegistryError(
                f"model {name!r} has no version with the alias {missing!r}: nothing to go back to"
            )
        self.client.set_registered_model_alias(name, PREVIOUS, champion)
        self.client.set_registered_model_alias(name, CHAMPION, previous)
        return previous, champion

    def version(self, name: str, alias: str) -> str | None:
        """The version an alias points at, or None.

        Raises:
            RegistryError: The registry does not answer.
        """
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise RegistryError(
                    f"{redact_uri(self.uri)} does not answer: {redact_uri(str(error))[:300]}"
                ) from error
            return None

    def tags(self, name: str, version: str) -> dict[str, str]:
        """Tags of a version.

        Raises:
            RegistryError: No such version.
        """
        from mlflow.exceptions import MlflowException

        try:
            return dict(self.client.get_model_version(name, version).tags)
        except MlflowException as error:
            raise RegistryError(
                f"no version {version} of model {name!r} in {redact_uri(self.uri)}"
            ) from error

    def download(self, name: str, version: str, folder: Path) -> Path:
        """Fetch the artifact of a version; returns the folder of the exported model in it."""
        import mlflow

        uri = f"models:/{name}/{version}"
        return exported_folder(Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder))))

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise RegistryError(
                    f"model {name!r} cannot be registered: {redact_uri(str(error))[:300]}"
                ) from error

    def _version_of(self, name: str, model_uri: str) -> str | None:
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.source == model_uri or version.tags.get("model_uri") == model_uri:
                return str(version.version)
        return None


def _tags_of(record: ModelRecord) -> dict[str, str]:
    """What a person wants to see of a version without opening its run."""
    values: dict[str, Any] = {
        "model_uri": record.model_uri,
        "lowrank.key": record.key,
        "weights_sha256": record.export_sha256,
        "num_parameters": record.size.num_parameters,
        "num_bytes": record.size.num_bytes,
        f"validation.{record.metric.name}": f"{record.quality:.6g}",
        f"test.{record.metric.name}": f"{record.test[record.metric.name]:.17g}",
    }
    if record.densities is not None:
        values |= {
            "density.prunable": f"{record.densities.prunable:.6f}",
            "density.parameters": f"{record.densities.parameters:.6f}",
            "density.bytes": f"{record.densities.bytes:.6f}",
            "density.macs": f"{record.densities.macs:.6f}",
        }
    for row in record.speed:
        values[f"speedup.b{row.batch}"] = f"{row.speedup:.3f}"
    return {key: str(value) for key, value in values.items()}
