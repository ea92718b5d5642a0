"""The tasks of GLUE by name (Wang et al. 2018, arXiv 1804.07461): columns, metric, splits.

The labels of GLUE's own test splits are not public. What is published for compressed models are
figures on its validation splits, so these are the test data here, which nothing is chosen by;
the data to choose by are cut from train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.spec_block import Block


@dataclass(frozen=True, kw_only=True, slots=True)
class GlueForm:
    """What a task of GLUE looks like in the `datasets` library."""

    text: tuple[str, ...]
    metric: str
    kind: Literal["classification", "regression"] = "classification"
    validation: str = "validation"
    """Name of the split that stands for test."""


GLUE = {
    "cola": GlueForm(text=("sentence",), metric="matthews"),
    "sst2": GlueForm(text=("sentence",), metric="accuracy"),
    "mrpc": GlueForm(text=("sentence1", "sentence2"), metric="accuracy_f1"),
    "stsb": GlueForm(text=("sentence1", "sentence2"), metric="pearson_spearman", kind="regression"),
    "qqp": GlueForm(text=("question1", "question2"), metric="accuracy_f1"),
    "mnli": GlueForm(
        text=("premise", "hypothesis"), metric="accuracy", validation="validation_matched"
    ),
    "qnli": GlueForm(text=("question", "sentence"), metric="accuracy"),
    "rte": GlueForm(text=("sentence1", "sentence2"), metric="accuracy"),
}


class Glue(Block):
    """A task of GLUE. Its validation split (of MNLI the matched one) is the test split here, since
    the labels of GLUE's own are not public; validation is a tenth of train, by content hash."""

    source: Literal["glue"]
    task: Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
    """`stsb` is a regression, all others are classifications."""
    path: str = "nyu-mll/glue"
    """A hub name, or a local folder with one folder per task, whose files begin with the name of
    their split: `mrpc/train.parquet`, `mrpc/validation.jsonl`."""

    @property
    def form(self) -> GlueForm:
        return GLUE[self.task]


def with_usual_metric(block: Any) -> Any:
    """A task's block with GLUE's metric, if its data are GLUE's and it names no metric itself."""
    if not isinstance(block, dict) or "metric" in block:
        return block
    data = block.get("data")
    if isinstance(data, dict) and data.get("source") == "glue":
        name = data.get("task")
    else:
        name = data.task if isinstance(data, Glue) else None
    form = GLUE.get(name) if isinstance(name, str) else None
    # where the kind is wrong, that is what has to be said
    if form is None or form.kind != block.get("kind"):
        return block
    return block | {"metric": form.metric}
