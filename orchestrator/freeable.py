"""What of a campaign may be freed, and what stays whatever happens: dense references, what the
registry has, what `retention.keep` names, and all records, curves and reports."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lowrank.export import WEIGHTS
from orchestrator.campaign_records import Choice
from orchestrator.disk import num_bytes
from orchestrator.errors import RegistryError
from orchestrator.layout import Layout
from orchestrator.promotion import registered_name
from orchestrator.records import ModelRecord, RecordError
from orchestrator.registry import Registry
from orchestrator.retention import Item, Stage
from orchestrator.selection import worth_keeping
from orchestrator.spec import CampaignSpec
from orchestrator.tracking.models import LoggedModels
from orchestrator.weights import released

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Freeable:
    """A campaign's files, as its driver knows them at one moment."""

    spec: CampaignSpec
    layout: Layout
    tracking_uri: str
    records: dict[str, ModelRecord] = field(default_factory=dict)
    """Finished models of this run, by their key."""
    failed: set[str] = field(default_factory=set)
    """Keys of trainings that ended without a model."""
    searches: set[str] = field(default_factory=set)
    """Names of Ray Tune's folders that are of earlier runs."""
    running: Collection[str] = ()
    """Keys of trainings that are on their way, or will be."""
    used: Collection[str] = ()
    """Keys of models that somebody reads right now."""
    choices: Mapping[str, Choice] | None = None
    """Task -> what was chosen, once the campaign is over."""

    def items(self, logged: LoggedModels) -> Iterator[Item]:
        """Everything that may go."""
        yield from self._leftovers()
        yield from self._states()
        registered = self._registered()
        stays = self._stays(registered)
        for key, record in self.records.items():
            if record.config and key not in self.used:
                yield from self._of_model(key, record, logged, key in stays)
        may_go = self.spec.retention.keep != "all" and registered is not None
        if self.choices is not None and may_go:
            yield from self._left_behind(logged, registered or set())

    def _of_model(
        self, key: str, record: ModelRecord, logged: LoggedModels, stays: bool
    ) -> Iterator[Item]:
        home = self.layout.model(key)
        note, weights = released(home), num_bytes(home / WEIGHTS)
        if note is not None and note.weights == "nowhere":
            return
        whole = logged.is_whole(record)
        if weights and whole:
            yield Item(
                stage=Stage.WORKING_COPY, key=key, num_bytes=weights, rank=0.0 if stays else 1.0
            )
        if not stays:
            copy = logged.folder(record)
            # the working copy went in the stage before, if MLflow has the weights
            both = (0 if copy is None else num_bytes(copy)) + (0 if whole else weights)
            loss = record.quality * (-1 if record.metric.higher_is_better else 1)
            yield Item(stage=Stage.WEIGHTS, key=key, num_bytes=both, rank=loss)

    def _left_behind(self, logged: LoggedModels, registered: set[str]) -> Iterator[Item]:
        """Compressed models that a spec of before asked for."""
        for path in folders(self.layout.root / "models"):
            record = None if path.name in self.records else self.record_of(path.name)
            if record is not None and record.config and record.model_uri not in registered:
                yield from self._of_model(path.name, record, logged, stays=False)

    def _states(self) -> Iterator[Item]:
        for path in folders(self.layout.root / "snapshots"):
            if path.name in self.running or path.name in self.records:
                continue
            if path.name in self.failed or self.choices is not None:
                yield Item(stage=Stage.STATE, key=path.name, num_bytes=num_bytes(path))

    def _leftovers(self) -> Iterator[Item]:
        for path in self._leftover_folders():
            name = path.relative_to(self.layout.root).as_posix()
            yield Item(stage=Stage.LEFTOVER, key=name, num_bytes=num_bytes(path))

    def _leftover_folders(self) -> Iterator[Path]:
        for path in folders(self.layout.root / "models"):
            if path.suffix == ".partial" and path.stem not in self.running:
                yield path
        for path in folders(self.layout.train):
            if path.name not in self.running:
                yield path
        for path in folders(self.layout.root / "snapshots"):
            if path.name in self.records and path.name not in self.running:
                yield path
        for path in folders(self.layout.tune):
            if self.choices is not None or path.name in self.searches:
                yield path

    def _stays(self, registered: set[str] | None) -> set[str]:
        """Keys of compressed models that are never given up."""
        if self.spec.retention.keep == "all" or registered is None:
            return set(self.records)
        stays = {r.key for r in self.records.values() if r.model_uri in registered}
        for task in self.spec.tasks:
            own = [r for r in self.records.values() if r.task == task.name]
            dense = next((record for record in own if not record.config), None)
            trials = [record for record in own if record.config]
            choice = (self.choices or {}).get(task.name)
            if choice is not None and choice.key is not None:
                stays.add(choice.key)
            if dense is None:
                stays |= {record.key for record in trials}
            elif choice is None or self.spec.retention.keep == "front":
                stays |= worth_keeping(trials, dense, self.spec.select)
        return stays

    def _registered(self) -> set[str] | None:
        """Addresses of models that the registry has versions of; None if it does not answer."""
        uri = self.spec.tracking.registry or self.tracking_uri
        try:
            registry = Registry(uri, self.tracking_uri)
            names = [registered_name(self.spec, task.name) for task in self.spec.tasks]
            return {source for name in names for source in registry.sources(name)}
        except RegistryError as error:
            logger.warning("no model is given up now: %s", error)
            return None

    def record_of(self, key: str) -> ModelRecord | None:
        """Of a model of this run, or of one that lies in the folder."""
        if key in self.records:
            return self.records[key]
        try:
            return ModelRecord.load(self.layout.record(key))
        except RecordError:
            return None


def folders(path: Path) -> list[Path]:
    """In a folder, if it is there."""
    return sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
