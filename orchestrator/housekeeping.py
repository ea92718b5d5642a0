"""Keeps a campaign within its budget of disk: looks, frees what may go, says what it did.

The driver asks after each finished model, after each measurement and at the end. What may go is
found in `freeable`, what goes first is decided in `retention`.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from lowrank.export import WEIGHTS
from orchestrator.campaign_records import Choice
from orchestrator.disk import Disk, Usage
from orchestrator.errors import CampaignError
from orchestrator.freeable import Freeable, folders
from orchestrator.layout import Layout
from orchestrator.records import ModelRecord
from orchestrator.retention import Item, Stage, to_free, training_bytes
from orchestrator.spec import CampaignSpec
from orchestrator.tracking import Tracking
from orchestrator.tracking.models import LoggedModels
from orchestrator.tracking.patience import Patience
from orchestrator.tracking.writer import SHORT_WAIT_S
from orchestrator.weights import RELEASED, bring_back, release, released
from orchestrator.wording import count

logger = logging.getLogger(__name__)

SPARE = 20
"""From so many models on, one part in as many of the budget is freed beyond what is needed while
more are to come: else the next one would need a look at the whole disk again, and so would all."""

SAYS = {
    Stage.LEFTOVER: "leftovers",
    Stage.WORKING_COPY: "working copies that MLflow has too",
    Stage.STATE: "states of trainings that nobody goes on with",
    Stage.WEIGHTS: "weights of models that are not to be kept",
}


class Housekeeping:
    """Of one campaign, in its driver.

    Args:
        spec: The campaign.
        layout: Its folder.
        tracking: Its store.
        say: Receives lines for people.
    """

    def __init__(
        self, spec: CampaignSpec, layout: Layout, tracking: Tracking, say: Callable[[str], None]
    ) -> None:
        self.budget = spec.retention.num_bytes
        self._layout, self._tracking, self._say = layout, tracking, say
        self._snapshots = spec.retention.snapshots
        self._keep = spec.retention.keep
        self._files = Freeable(spec=spec, layout=layout, tracking_uri=tracking.uri)
        self._copies: LoggedModels | None = None
        self._disk = Disk(layout)
        # what a ladder leaves at its end is of several models, and its trunk's states
        self._knows_each = spec.search.ladder is None
        self._told = 0

    def start(self, data: Iterable[str]) -> None:
        """Before anything trains.

        Args:
            data: Content hashes of the prepared data.
        """
        self._disk = Disk(self._layout, data)
        self._files.searches = {path.name for path in folders(self._layout.tune)}
        self._mend()

    def know(self, record: ModelRecord) -> None:
        """A model that is finished, or has been measured."""
        if record.key not in self._files.records:
            self._disk.wrote(record.key)
        self._files.records[record.key] = record

    def ended(self, key: str, result: Mapping[str, Any]) -> None:
        """A trial that is over.

        Args:
            key: Of its model.
            result: Its last report: `failure` or `stopped` if there is no model, `unrecorded` if
                its run is still to be written.
        """
        self._disk.wrote(key)
        if result.get("failure") or result.get("stopped"):
            self._files.failed.add(key)
        elif not result.get("unrecorded") and (record := self._files.record_of(key)) is not None:
            self._files.records[key] = record

    def is_gone(self, key: str) -> bool:
        """Whether a model's weights were given up."""
        note = released(self._layout.model(key))
        return note is not None and note.weights == "nowhere"

    def bring(self, record: ModelRecord) -> None:
        """Have a model's weights where `record.export` says, for somebody who loads them.

        Raises:
            WeightsGoneError: They were given up.
        """
        if released(self._layout.model(record.key)) is not None:
            logged = self._logged(self._tracking.patience)
            bring_back(record, self._layout.model(record.key), logged.fetch)
            self._disk.wrote(record.key)

    def usage(self) -> Usage:
        return self._disk.look()

    def settle(
        self, running: Collection[str] = (), side_by_side: int = 0, used: Collection[str] = ()
    ) -> None:
        """Free what is needed to be within the budget, with room for the trainings that go on.

        Args:
            running: Keys of trainings that are on their way, or will be.
            side_by_side: How many of them at a time.
            used: Keys of models that somebody reads right now.
        """
        if self.budget is None:
            return
        target = max(0, self.budget - self._room(min(side_by_side, len(running))))
        if self._knows_each and self._disk.most <= target:
            return
        self._files.running, self._files.used = set(running), set(used)
        now = self.usage().total
        self._warn(self._free_to(target, now) if now > target else now)

    def close(self, choices: Mapping[str, Choice]) -> None:
        """At the end of a campaign: what nobody asks for any more may go as well.

        Args:
            choices: Task -> what was chosen.
        """
        self._files.choices = dict(choices)
        self.settle()
        self._say(self.usage().in_words(self.budget))

    def _room(self, trainings: int) -> int:
        """For trainings on their way; the largest of the dense models counts."""
        sizes = [r.size for r in self._files.records.values() if not r.config]
        each = [training_bytes(s.num_parameters, s.num_prunable, self._snapshots) for s in sizes]
        return trainings * max(each, default=0)

    def _free_to(self, target: int, before: int) -> int:
        """Returns the bytes in use afterwards."""
        assert self.budget is not None
        if self._files.choices is None and len(self._files.records) >= SPARE:
            target = max(0, target - self.budget // SPARE)
        # a store that is away must not hold up what trains: the next time is soon enough
        self._copies = self._copies or self._logged(Patience(self._tracking.uri, SHORT_WAIT_S))
        gone: list[Item] = []
        now = before
        try:
            # more than once, for notes of what went take room too
            while chosen := to_free(self._files.items(self._copies), now, target):
                for item in chosen:
                    self._free(item, self._copies)
                gone += chosen
                left = self.usage().total
                if left >= now:  # a folder that cannot be removed
                    break
                now = left
        except Exception as error:  # trainings are on their way: they are worth more than room
            known = isinstance(error, CampaignError | OSError)
            logger.warning("nothing more is freed now: %s", error, exc_info=not known)
        if gone:
            counts = Counter(item.stage for item in gone)
            parts = [f"{counts[stage]} {SAYS[stage]}" for stage in Stage if counts[stage]]
            self._say(
                f"retention: {count(before - now, 'B')} freed ({', '.join(parts)}), "
                f"{count(now, 'B')} of {count(self.budget, 'B')} in use"
            )
        return now

    def _free(self, item: Item, logged: LoggedModels) -> None:
        home = self._layout.model(item.key)
        if item.stage is Stage.LEFTOVER:
            shutil.rmtree(self._layout.root / item.key, ignore_errors=True)
        elif item.stage is Stage.STATE:
            shutil.rmtree(self._layout.snapshots(item.key), ignore_errors=True)
        elif item.stage is Stage.WORKING_COPY:
            release(home, "mlflow")
        else:
            release(home, "nowhere")
            if (record := self._files.record_of(item.key)) is not None:
                logged.give_up(record)

    def _mend(self) -> None:
        """What a process that was killed while it freed has left undone."""
        for home in folders(self._layout.root / "models"):
            note = released(home)
            if note is None:
                continue
            if note.weights == "mlflow":
                # it was about to go, and need not: it is simply here
                if (home / WEIGHTS).exists():
                    (home / RELEASED).unlink(missing_ok=True)
                continue
            release(home, "nowhere")
            record = self._files.record_of(home.name)
            if record is not None:
                logged = self._logged(self._tracking.patience)
                copy = logged.folder(record)
                if copy is not None and copy.exists():
                    logged.give_up(record)

    def _logged(self, patience: Patience) -> LoggedModels:
        return LoggedModels(self._tracking.uri, patience, self._layout.artifacts)

    def _warn(self, used: int) -> None:
        """Once for every tenth by which it grows. No more than a warning: what is trained is worth
        more than the budget."""
        assert self.budget is not None
        if used <= max(self.budget, 1.1 * self._told):
            return
        self._told = used
        self._say(
            f"retention.budget must be at least {count(used, 'B')}, got "
            f"{count(self.budget, 'B')}: nothing more may be given up (keep: {self._keep}). The "
            f"campaign goes on. {self.usage().in_words()}"
        )
