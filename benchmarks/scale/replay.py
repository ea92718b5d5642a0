"""A training that was recorded, told again in the place of a real one.

What a trial's process sees is what it sees of a real training: points in the journal and in
MLflow, a report at each validation, an exported model with its record. Only the steps are missing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.compress import compress_one
from orchestrator.launch import Launch
from orchestrator.records import RECORD, CurvePoint, ModelRecord
from orchestrator.spec import CampaignSpec
from orchestrator.tracking import RunWriter
from orchestrator.tracking.journal import CurveSink, Journal
from orchestrator.tracking.patience import Patience

SPREAD = 0.02
"""A trial's validation figure is the recorded one times up to this more or less, by its key: draws
that are all equal would make one front member of each density."""


def record(spec: CampaignSpec, folder: Path) -> None:
    """Train the dense model and one of each density, in this process; nothing if it is done."""
    for density in spec.search.density:
        home = folder / f"{density:g}"
        if (home / "compressed" / RECORD).exists():
            continue
        shutil.rmtree(home, ignore_errors=True)
        compress_one(spec, spec.tasks[0], density, home, print)


@dataclass(frozen=True)
class Replay:
    """Stands where `train_on_workers` stands; travels to the trials' processes.

    Args:
        folder: What `record` left.
    """

    folder: str

    def __call__(self, launch: Launch, callbacks: list[Any]) -> ModelRecord:
        source = self._source(launch)
        recorded = ModelRecord.load(source / RECORD)
        self._tell(launch, recorded)
        home = launch.layout.model(launch.key)
        partial = home.with_name(home.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        made = replace(
            recorded,
            key=launch.key,
            seed=launch.job["seed"],
            config=launch.job["method"] if launch.job["dense"] else {},
            validation=self._varied(launch, recorded),
            export="",
            densities=None,
        )
        made.save(partial / RECORD)
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(home)
        return made

    def _source(self, launch: Launch) -> Path:
        if launch.job["dense"] is None:
            return sorted(Path(self.folder).iterdir())[0] / "dense"
        return Path(self.folder) / f"{launch.job['method']['density']:g}" / "compressed"

    def _tell(self, launch: Launch, recorded: ModelRecord) -> None:
        """As the first worker's recorder does: on to MLflow at every validation, and to Tune."""
        from ray import tune

        uri = launch.tracking_uri
        writer = RunWriter(uri, launch.run_id, Patience(uri))
        journal = Journal(launch.layout.journal(launch.key))
        sink = CurveSink(journal, lambda points: writer.points(points, launch.metric))
        waiting: list[CurvePoint] = []
        for point in recorded.curve:
            waiting.append(point)
            if point.validation is not None:
                sink(waiting)
                waiting = []
                progress = {k: v for k, v in asdict(point).items() if v not in (None, {})}
                tune.report(progress | {"total_steps": recorded.curve[-1].step + 1})
        sink(waiting)

    def _varied(self, launch: Launch, recorded: ModelRecord) -> dict[str, float]:
        if launch.job["dense"] is None:
            return recorded.validation
        digest = hashlib.sha256(json.dumps(launch.key).encode()).digest()
        factor = 1 + SPREAD * (2 * int.from_bytes(digest[:4], "big") / 2**32 - 1)
        return {name: value * factor for name, value in recorded.validation.items()}
