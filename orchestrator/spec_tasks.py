"""What a campaign compresses: blocks of data, models and tasks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.spec_block import Block, Name, PlacedErrors, check_fields, rule
from orchestrator.spec_glue import Glue, with_usual_metric
from orchestrator.spec_method import MethodSpec
from orchestrator.spec_resources import Resources

# --------------------------------------------------------------------------- data and models


class PythonDocs(Block):
    """The prose that ships with every Python: language reference topics and docstrings."""

    source: Literal["python-docs"]
    classes: int = Field(8, ge=2, le=20)
    """Classification only: how many packages to tell apart, those with the most docstrings."""


class Files(Block):
    """Text files (language modelling) or tab-separated tables with a header (all other kinds)."""

    source: Literal["files"]
    train: str
    """UTF-8 text, or a table: tab-separated, one header line, no quoting."""
    validation: str | None = None
    """When absent, a tenth of the training documents, chosen by content hash."""
    test: str | None = None
    text: list[str] = Field(default=["sentence"], min_length=1, max_length=2)
    """Tables only: the column, or the pair of columns, to read."""
    label: str = "label"
    """Tables only: the column of the class or the score."""


class HubDataset(Block):
    """A data set of the `datasets` library: a hub name, or a local folder or builder."""

    source: Literal["datasets"]
    path: str
    """A hub name, a local folder, or a builder such as `json`."""
    name: str | None = None
    """The data set's configuration."""
    data_files: dict[str, str] | None = None
    splits: dict[Literal["train", "validation", "test"], str] = Field(
        default={"train": "train", "validation": "validation", "test": "test"}
    )
    text: list[str] = Field(default=["text"], min_length=1, max_length=2)
    label: str = "label"
    """The column of the class or the score; language modelling has none."""


Data = Annotated[PythonDocs | Files | HubDataset | Glue, Field(discriminator="source")]


class ModelSpec(Block):
    """A transformers model: `pretrained` (folder or hub name), or `type` with `config`."""

    pretrained: str | None = None
    """A folder, a hub name, or `package:NAME` for weights inside an installed Python package."""
    type: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of the transformers config of `type`; the data decide the vocabulary size."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSpec:
        if (self.pretrained is None) == (self.type is None):
            raise ValueError("exactly one of `pretrained` and `type` must be given")
        return self


class DenseSpec(Block):
    """How the dense reference is trained. `steps: 0` takes a pretrained model as it is."""

    steps: int = Field(ge=0, le=10_000_000)
    """0 takes the model as it is."""
    learning_rate: float = Field(gt=0, le=1)
    """Peak; linear warm-up, then a cosine down to a tenth."""
    batch: int = Field(16, ge=1)
    """Sequences per step over all workers, in every phase of this task."""
    weight_decay: float = Field(0.01, ge=0, lt=1)
    """Of matrices; biases and norms are not decayed."""
    warmup_fraction: float = Field(0.05, ge=0, le=1)
    """Part of the steps, in every phase."""


# --------------------------------------------------------------------------- tasks


class TaskBase(Block):
    name: Name
    """Becomes part of folders, runs and the registered model's name."""
    kind: str
    data: Data
    model: ModelSpec
    dense: DenseSpec
    method: dict[str, Any] = Field(default_factory=dict)
    """Fields of the campaign's `method` that differ for this task."""
    resources: dict[str, Any] = Field(default_factory=dict)
    """Fields of the campaign's `resources` that differ for this task."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between validations during training; the last step always validates."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast in training; gates, multipliers, counts and evaluation stay float32."""
    max_train_examples: int | None = Field(None, ge=1)
    """Cap on the training split."""
    max_eval_examples: int | None = Field(None, ge=1)
    """Caps, by content hash; for language models an example is a window of `context` tokens."""

    @model_validator(mode="after")
    def _kind_of_its_data(self) -> Self:
        if isinstance(self.data, Glue) and self.data.form.kind != self.kind:
            message = f"must be {self.data.form.kind} for GLUE's {self.data.task}, got {self.kind}"
            raise PlacedErrors([rule(("kind",), message)], type(self))
        return self

    @field_validator("method")
    @classmethod
    def _method_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_fields(MethodSpec, value)

    @field_validator("resources")
    @classmethod
    def _resource_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_fields(Resources, value)


class LanguageModelling(TaskBase):
    """Next-token prediction. Evaluation: windows of `context` tokens without overlap."""

    kind: Literal["language-modelling"]
    level: Literal["character", "word", "token"] = "character"
    """`token`: of the pretrained model, or a byte-pair encoding of the training text."""
    context: int = Field(128, ge=2, le=1_000_000)
    """Tokens of a training window, and of an evaluation window."""
    vocab_size: int = Field(8192, ge=2)
    """Upper bound for `word` (rarer words become <unk>) and `token`."""


class LabelledTexts(TaskBase):
    """What tasks with one label per text or pair of texts have in common."""

    max_length: int = Field(128, ge=4, le=100_000)
    """Tokens; longer texts are cut."""
    vocab_size: int = Field(8192, ge=64)
    """For a model built from a config: size of the byte-pair encoding of the training text."""

    @model_validator(mode="before")
    @classmethod
    def _usual_metric(cls, block: Any) -> Any:
        return with_usual_metric(block)


class Classification(LabelledTexts):
    """One class per text or pair of texts."""

    kind: Literal["classification"]
    metric: Literal["accuracy", "f1", "matthews", "accuracy_f1"] = "accuracy"
    """All are recorded; this one decides. `f1` is that of the second of two classes, in numeric or
    alphabetic order, or the mean over more; `accuracy_f1` the mean of both. `source: glue` has the
    metric of its task by default."""


class Regression(LabelledTexts):
    """One score per text or pair of texts, such as how alike two sentences are."""

    kind: Literal["regression"]
    metric: Literal["pearson", "spearman", "pearson_spearman"] = "pearson_spearman"
    """All are recorded, with the mean squared error; this one decides. `pearson_spearman` is the
    mean of both correlations, as GLUE has it for STS-B."""

    @model_validator(mode="after")
    def _has_scores(self) -> Self:
        if isinstance(self.data, PythonDocs):
            message = "must be a source with scores, got 'python-docs', which has classes"
            raise PlacedErrors([rule(("data", "python-docs", "source"), message)], type(self))
        return self


AnyTask = LanguageModelling | Classification | Regression
Task = Annotated[AnyTask, Field(discriminator="kind")]
