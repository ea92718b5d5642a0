"""The kinds of task: what a batch is, what the loss is, how quality is measured."""

from orchestrator.tasks.base import TrainingTask, make_task
from orchestrator.tasks.distillation import Distillation

__all__ = ["Distillation", "TrainingTask", "make_task"]
