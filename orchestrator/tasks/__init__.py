"""The kinds of task: what a batch is, what the loss is, how quality is measured."""

from lowrank.distillation import Distillation
from orchestrator.tasks.base import TrainingTask, make_task

__all__ = ["Distillation", "TrainingTask", "make_task"]
