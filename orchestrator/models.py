"""Building the transformers model of a task, from a config or from pretrained weights."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import pickle
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lowrank.errors import first_line
from lowrank.models import CLUSTERED_TYPES, STATEFUL_TYPES, register
from orchestrator.data.prepare import PreparedData
from orchestrator.errors import ModelError
from orchestrator.spec_tasks import AnyTask, LanguageModelling, ModelSpec, Regression

PACKAGE_PREFIX = "package:"
CLUSTER_SHARES = (0.9, 0.98)
"""Of the training data, that the words before each cutoff of an adaptive decoder make up: nine of
ten places need cluster 0 only, and most words are in the last, narrowest cluster."""


def resolve_pretrained(model: ModelSpec) -> str | None:
    """The folder or hub name of `model.pretrained`; None for a model built from a config.

    `package:NAME` is the one folder with a config.json inside an installed Python package.

    Raises:
        ModelError: The package is not installed or holds no model.
    """
    name = model.pretrained
    if name is None or not name.startswith(PACKAGE_PREFIX):
        return name
    package = name.removeprefix(PACKAGE_PREFIX)
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # of `a.b` without an `a`, and of no name at all
        found = None
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"model.pretrained: no installed Python package {package!r}")
    root = Path(found.submodule_search_locations[0])
    folders = sorted(
        path.parent
        for path in root.rglob("config.json")
        if (path.parent / "tokenizer.json").exists()
    )
    if len(folders) != 1:
        raise ModelError(
            f"model.pretrained: {package!r} must hold exactly one folder with config.json and "
            f"tokenizer.json, found {len(folders)}"
        )
    return str(folders[0])


def auto_class_of(task: AnyTask) -> str:
    """Name of the transformers Auto class that builds the task's model."""
    if isinstance(task, LanguageModelling):
        return "AutoModelForCausalLM"
    return "AutoModelForSequenceClassification"


def carries_state(model: ModelSpec) -> bool:
    """Whether the model takes a `state` and returns the next one, so that it reads a text in
    pieces; a model that cannot be found does not, and fails where it is built."""
    return _type_of(model) in STATEFUL_TYPES


def takes_targets(model: ModelSpec) -> bool:
    """Whether the model takes `targets` and returns their loss without all logits."""
    return _type_of(model) in CLUSTERED_TYPES


def _type_of(model: ModelSpec) -> str | None:
    return model.type or _pretrained_type(resolve_pretrained(model))


def takes_token_types(model: ModelSpec) -> bool:
    """Whether the model tells the two texts of a pair apart by token types: BERT and ELECTRA do,
    DistilBERT does not, nor RoBERTa as it was published; a model that cannot be found does not,
    and fails where it is built."""
    import transformers

    try:
        if model.type is not None:
            config = transformers.AutoConfig.for_model(model.type, **model.config)
        else:
            config = transformers.AutoConfig.from_pretrained(
                resolve_pretrained(model), trust_remote_code=False
            )
    except Exception:  # as in `build_config`
        return False
    return (getattr(config, "type_vocab_size", None) or 0) > 1


@functools.cache
def _pretrained_type(source: str) -> str | None:
    import transformers

    try:
        config, _ = transformers.PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError):
        return None
    return config.get("model_type")


def build_model(task: AnyTask, data: PreparedData, seed: int) -> nn.Module:
    """The dense model before training; the same seed gives the same weights.

    A new head for scores answers the mean score of train to everything, nearly: with short
    training, most of it would go into the way there.

    Raises:
        ModelError: Unknown model type or config field, or a name that cannot be loaded.
    """
    import transformers

    register()
    torch.manual_seed(seed)
    auto = getattr(transformers, auto_class_of(task))
    if task.model.pretrained is not None:
        return _load_pretrained(auto, task, data).float()
    return start_at_mean(_from_config(auto, task, data), task, data).float()


def start_at_mean(
    model: nn.Module, task: AnyTask, data: PreparedData, new: Container[str] | None = None
) -> nn.Module:
    """For a regression, set the bias of the output layer to the mean score of train, in place.

    A head without a bias (GPT-2's) stays as it is, and so does one that is not among the `new`
    parameters; by default all are new.
    """
    if isinstance(task, Regression):
        *_, (name, last) = (pair for pair in model.named_modules() if type(pair[1]) is nn.Linear)
        is_new = new is None or f"{name}.bias" in new
        if is_new and last.out_features == 1 and last.bias is not None:
            nn.init.constant_(last.bias, data.info["splits"]["train"]["scores"]["mean"])
    return model


def build_config(task: AnyTask, data: PreparedData) -> Any:
    """The transformers config of a task whose model is given by `type`."""
    import transformers

    register()
    spec = task.model
    known = list(transformers.models.auto.configuration_auto.CONFIG_MAPPING)
    if spec.type not in known:
        close = difflib.get_close_matches(str(spec.type), known, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ModelError(f"model.type: transformers knows no model type {spec.type!r}{hint}")
    fields = _data_fields(task, data) | spec.config
    default = transformers.AutoConfig.for_model(spec.type)
    for field in spec.config:
        if not hasattr(default, field):
            close = difflib.get_close_matches(field, default.to_dict(), n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ModelError(f"model.config.{field}: {spec.type} has no such field{hint}")
    try:
        return transformers.AutoConfig.for_model(spec.type, **fields)
    except Exception as error:  # transformers raises many kinds
        raise ModelError(f"model.config: {spec.type} refuses {spec.config}: {error}") from error


def _from_config(auto: Any, task: AnyTask, data: PreparedData) -> nn.Module:
    config = build_config(task, data)
    if type(config) not in auto._model_mapping:
        raise ModelError(
            f"model.type: {task.model.type} has no {auto.__name__}, which a {task.kind} task needs"
        )
    return auto.from_config(config)


def _data_fields(task: AnyTask, data: PreparedData) -> dict[str, Any]:
    fields: dict[str, Any] = {"vocab_size": data.vocab_size, "pad_token_id": data.pad_token_id}
    if isinstance(task, LanguageModelling):
        # the defaults of a published config point outside a small vocabulary
        fields |= {"bos_token_id": None, "eos_token_id": None}
        if task.model.type in CLUSTERED_TYPES:
            fields |= {"cutoffs": _cutoffs(task, data)}
        return fields
    return fields | _label_fields(task, data)


def _cutoffs(task: LanguageModelling, data: PreparedData) -> list[int]:
    """Where the words so far make up each of `CLUSTER_SHARES` of the training data."""
    if task.level != "word":
        raise ModelError(
            f"model.type: {task.model.type} needs `level: word`, whose ids are sorted by "
            f"frequency, got {task.level!r}"
        )
    counts = np.cumsum(data.token_counts("train"))
    edges = np.searchsorted(counts, [share * counts[-1] for share in CLUSTER_SHARES]) + 1
    # a small vocabulary may have no room for all of them
    return [int(edge) for edge in np.unique(edges) if edge < data.vocab_size]


def _label_fields(task: AnyTask, data: PreparedData) -> dict[str, Any]:
    """What the head is for; the config of a pretrained model may say something else."""
    if isinstance(task, LanguageModelling):
        return {}
    if isinstance(task, Regression):
        return {"num_labels": 1, "problem_type": "regression"}
    labels = data.label_names
    return {
        "problem_type": "single_label_classification",
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _load_pretrained(auto: Any, task: AnyTask, data: PreparedData) -> nn.Module:
    import transformers

    source = resolve_pretrained(task.model)
    fields = _label_fields(task, data)
    # what is missing is judged below; transformers would print a table and go on
    transformers.utils.logging.set_verbosity_error()
    try:
        model, loading = auto.from_pretrained(
            # of a head for other labels; what else does not fit is refused below
            source,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **fields,
        )
    except pickle.UnpicklingError as error:  # torch's own message tells how to run the code in it
        raise ModelError(
            f"model.pretrained: the weights of {source!r} must be safetensors, or a pickle of "
            "nothing but tensors"
        ) from error
    except Exception as error:  # of a damaged file the readers of its format raise their own
        raise ModelError(
            f"model.pretrained: {source!r} is neither a folder with a model nor a hub name that "
            f"can be reached: {first_line(error)}"
        ) from error
    unset = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    new = _new_head(model, task, unset)
    missing = sorted(set(unset) - set(new))
    if missing:
        raise ModelError(
            f"model.pretrained: {source!r} has no weights for {', '.join(missing[:5])}"
            f"{' and others' if len(missing) > 5 else ''}; they would be random. "
            f"Is it a {type(model).__name__}?"
        )
    return start_at_mean(model, task, data, new)


def _new_head(model: Any, task: AnyTask, unset: list[str]) -> list[str]:
    """Of weights that were not loaded those that are meant to be new: a head's, outside the
    pretrained body."""
    if isinstance(task, LanguageModelling):
        return []
    body = f"{model.base_model_prefix}."
    return [k for k in unset if not k.startswith(body) or ".pooler." in k]
