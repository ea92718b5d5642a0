"""MLflow's copies of models: whether they are whole, where they lie, fetching and removing them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from orchestrator.records import ModelRecord
from orchestrator.tracking.patience import Patience, PatientClient
from orchestrator.tracking.writer import WEIGHTS_SHA256, WEIGHTS_TAG, mlflow_client

GIVEN_UP = "given up: retention.budget"
"""What their tag says."""


class LoggedModels:
    """The logged models of a campaign.

    Args:
        uri: MLflow tracking URI.
        patience: How long a store that is away is asked again.
        artifacts: The folder under which files are the campaign's to remove: those of a store on
            this disk. What a server keeps is never removed.

    Raises:
        TrackingAway: By every method, when the store was away for longer.
    """

    def __init__(self, uri: str, patience: Patience, artifacts: Path) -> None:
        self._uri, self._patience, self._artifacts = uri, patience, artifacts
        self._client = PatientClient(mlflow_client(uri), patience)
        # asked for once: of what is finished, nobody but this removes anything
        self._whole: set[str | None] = set()
        self._folders: dict[str | None, Path | None] = {}

    def is_whole(self, record: ModelRecord) -> bool:
        """Whether MLflow has a model's weights, all of them, to give back."""
        if record.model_uri not in self._whole and self._look(record):
            self._whole.add(record.model_uri)
        return record.model_uri in self._whole

    def _look(self, record: ModelRecord) -> bool:
        model = self._model(record)
        if model is None or str(model.status) != "READY":
            return False
        if model.params.get(WEIGHTS_SHA256) != record.export_sha256:
            return False
        if WEIGHTS_TAG in model.tags:
            return False
        folder = _folder(model)
        if folder is None:
            return True
        sizes = [file.stat().st_size for file in folder.rglob("*.safetensors")]
        return record.size.num_bytes in sizes

    def folder(self, record: ModelRecord) -> Path | None:
        """Where the files of a model's copy lie, if they may be removed."""
        if record.model_uri not in self._folders:
            model = self._model(record)
            folder = None if model is None else _folder(model)
            inside = folder is not None and folder.is_relative_to(self._artifacts)
            self._folders[record.model_uri] = folder if inside else None
        return self._folders[record.model_uri]

    def give_up(self, record: ModelRecord) -> None:
        """Remove a copy's files, if they are the campaign's; first MLflow is told."""
        model, folder = self._model(record), self.folder(record)
        self._whole.discard(record.model_uri)
        if record.mlflow_run_id is not None:
            self._client.set_tag(record.mlflow_run_id, WEIGHTS_TAG, GIVEN_UP)
        if model is None or folder is None:
            return
        self._client.set_logged_model_tags(model.model_id, {WEIGHTS_TAG: GIVEN_UP})
        shutil.rmtree(folder, ignore_errors=True)

    def fetch(self, model_uri: str, folder: Path) -> Path:
        """Download a logged model; returns the exported model in it."""
        return self._patience.ask(self._fetch, model_uri, folder)

    def _fetch(self, model_uri: str, folder: Path) -> Path:
        import mlflow

        from orchestrator.flavor import exported_folder

        # MLflow resolves `models:/m-...` through its process-wide setting, not through a client
        mlflow.set_tracking_uri(self._uri)
        return exported_folder(
            Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=str(folder)))
        )

    def _model(self, record: ModelRecord) -> Any:
        """As MLflow has it, or None."""
        from mlflow.exceptions import MlflowException

        if record.model_uri is None:
            return None
        try:
            return self._client.get_logged_model(record.model_uri.removeprefix("models:/"))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def _folder(model: Any) -> Path | None:
    """Of a logged model whose files are on this machine."""
    location = urlparse(str(model.artifact_location))
    if location.scheme == "file":
        return Path(url2pathname(location.path))
    return None if location.scheme else Path(str(model.artifact_location))
