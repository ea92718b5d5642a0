"""The stage that measures finished models: their speed, and themselves in 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator import machines
from orchestrator.campaign_state import Site, TaskState
from orchestrator.records import ModelRecord
from orchestrator.tracking import RunWriter


class MeasuringStage:
    """Alone on the machine, after all training; what has been measured stays.

    Args:
        site: Of the campaign.
        again: Whether what has figures is measured again.
    """

    def __init__(self, site: Site, again: bool = False) -> None:
        self.site, self.again = site, again

    def run(self, state: TaskState) -> None:
        """Measure what is missing of a task."""
        self.speed(state)
        self.int8(state)

    def speed(self, state: TaskState) -> None:
        """Timings of models that have none yet (or of all); nothing else runs meanwhile."""
        from orchestrator.measure import measure_speed

        for index, record in enumerate(state.trials):
            if record.speed and not self.again:
                continue
            if self._is_gone(record):
                continue
            self.site.progress.line(
                f"{state.task.name}: measuring speed, {index + 1}/{len(state.trials)}"
            )
            rows = self._alone(measure_speed, state, record)
            record = replace(record, speed=rows)
            self._writer(record).speed(rows)
            self._keep(record)
            state.trials[index] = record
            self.site.house.settle()

    def int8(self, state: TaskState) -> None:
        """Every model in 8-bit integers, if the spec asks for it and it has not been done yet."""
        from orchestrator.measure import measure_int8

        assert state.dense is not None
        models = [state.dense, *state.trials] if self.site.spec.measure.int8 else []
        for index, record in enumerate(models):
            if record.int8 is not None and not self.again:
                continue
            if self._is_gone(record):
                continue
            self.site.progress.line(
                f"{state.task.name}: measuring 8-bit integers, {index + 1}/{len(models)}"
            )
            found = self._alone(measure_int8, state, record)
            if isinstance(found, str):
                self.site.progress.line(f"{state.task.name}: no 8-bit integers: {found}")
                continue
            record = replace(record, int8=found)
            self._writer(record).int8(found)
            self._keep(record)
            self.site.house.settle()
            if index == 0:
                state.dense = record
            else:
                state.trials[index - 1] = record

    def _alone(self, measure: Callable[..., Any], state: TaskState, record: ModelRecord) -> Any:
        """What is measured of a model beside the dense reference, on a node of the task."""
        assert state.dense is not None
        return machines.run_alone(
            measure,
            state.dense.export,
            record.export,
            state.task,
            self.site.layout.mirror.place(state.data.folder),
            self.site.spec.measure,
            labels=self.site.spec.resources_of(state.task).labels,
        )

    def _is_gone(self, record: ModelRecord) -> bool:
        """Whether a model can be measured no more; if it can, its weights are here afterwards."""
        if self.site.house.is_gone(record.key):
            self.site.progress.line(
                f"{record.task}: model {record.key} is not measured, its weights were given up "
                "(retention.budget)"
            )
            return True
        self.site.house.bring(record)
        return False

    def _writer(self, record: ModelRecord) -> RunWriter:
        assert record.mlflow_run_id is not None
        return self.site.tracking.writer(record.mlflow_run_id)

    def _keep(self, record: ModelRecord) -> None:
        """Write a record that has grown; last, since what it holds is not measured again."""
        self._writer(record).record_file(record)
        record.save(self.site.layout.record(record.key))
        self.site.house.know(record)
        self.site.layout.mirror.push_file(self.site.layout.record(record.key))
