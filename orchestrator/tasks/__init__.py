"""The kinds of task: what a batch is, what the loss is, how quality is measured."""

from orchestrator.tasks.base import TrainingTask, make_task

__all__ = ["TrainingTask", "make_task"]
