"""Families of encoders through the Auto classes: heads, token types, hidden states, whole jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lowrank.distillation import hidden_loss
from lowrank.hf import load_pretrained, load_tokenizer
from lowrank.surgery import find_layers
from orchestrator.models import build_model, takes_token_types
from orchestrator.promotion.checks import evaluate_artifact
from orchestrator.spec import MethodSpec
from orchestrator.spec_tasks import AnyTask, ModelSpec
from orchestrator.tasks import Distillation, TrainingTask, make_task
from tests.orchestrator.data.tasks import classification_task, table, table_files
from tests.orchestrator.small import (
    LENGTH,
    make_job,
    make_scores,
    method,
    ready,
    reviews,
    train_to,
)

# 24 places: RoBERTa counts them from the padding token's id on
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DISTILBERT = {
    "n_layers": 2,
    "dim": 32,
    "n_heads": 2,
    "hidden_dim": 64,
    "max_position_embeddings": 24,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    # as published, where type_vocab_size is 1
    "roberta": SIZES | {"type_vocab_size": 1},
    "distilbert": DISTILBERT,
    # with the projection of the embeddings that its small models have
    "electra": SIZES | {"embedding_size": 16},
    "mpnet": SIZES,
    "deberta-v2": SIZES | {"pooler_hidden_size": 32},
    "albert": SIZES | {"embedding_size": 16},
}
HEADS = {
    "bert": {"bert.pooler.dense", "classifier"},
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "distilbert": {"pre_classifier", "classifier"},
    "electra": {"classifier.dense", "classifier.out_proj"},
    "mpnet": {"classifier.dense", "classifier.out_proj"},
    "deberta-v2": {"pooler.dense", "classifier"},
    "albert": {"albert.pooler", "classifier"},
}
WITH_TYPES = {"bert", "electra", "albert"}


def pairs(folder: Path, **fields: Any) -> AnyTask:
    """Classes of pairs of texts."""
    rows = [
        (first, second, label)
        for (first, label), (second, _) in zip(
            reviews(60, seed=1), reviews(60, seed=2), strict=True
        )
    ]
    files = table_files(folder, ["a", "b"], train=table(*rows, header="a\tb\tlabel"))
    dense = {"steps": 4, "learning_rate": 5e-3, "batch": 8}
    return classification_task(
        files, **{"vocab_size": 160, "max_length": LENGTH, "dense": dense} | fields
    )


KINDS: dict[str, Callable[..., AnyTask]] = {"classes": pairs, "scores": make_scores}


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def model_of(name: str) -> dict[str, Any]:
    return {"type": name, "config": FAMILIES[name]}


def setup(name: str, folder: Path, kind: str = "classes") -> tuple[AnyTask, TrainingTask]:
    spec = KINDS[kind](folder / kind, model=model_of(name))
    return spec, ready(spec, folder / "cache")


def test_the_default_patterns_leave_the_head_alone(name: str, tmp_path: Path):
    spec, task = setup(name, tmp_path)
    model = build_model(spec, task.data, seed=0)
    every = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    defaults = MethodSpec()
    chosen = set(find_layers(model, defaults.include, defaults.exclude).layers)
    assert every - chosen == HEADS[name]
    assert all(layer.startswith(f"{model.base_model_prefix}.") for layer in chosen)


def test_token_types_go_where_the_model_has_them(name: str, tmp_path: Path):
    _, task = setup(name, tmp_path)
    assert task.data.info["uses_type_ids"] is True
    batch = task.collate(np.arange(4))
    assert ("token_type_ids" in batch) == (name in WITH_TYPES)
    assert takes_token_types(ModelSpec(type=name)) == (name in WITH_TYPES | {"roberta"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_job(name: str, kind: str, tmp_path: Path):
    """Dense, one compression with hidden states of the teacher, export, and back from its files."""
    spec, task = setup(name, tmp_path, kind)
    how = method(steps=3, density=0.5, distill_hidden=1.0, kind="adaptive", start="covariance")
    dense = train_to(tmp_path / "dense", make_job(spec, task.data, how))
    record = train_to(tmp_path / "small", make_job(spec, task.data, how, dense.export))
    assert record.size.num_prunable <= 0.5 * dense.size.num_prunable
    found = evaluate_artifact(record.export, spec, str(task.data.folder))
    assert (found.test, found.size, found.broken) == (record.test, record.size, None)
    model, original = load_pretrained(record.export), load_pretrained(dense.export)
    for head in HEADS[name]:
        assert type(model.get_submodule(head)) is nn.Linear
        assert model.get_submodule(head).weight.shape == original.get_submodule(head).weight.shape
    # the tokenizer that is exported gives what the model takes
    given = load_tokenizer(record.export)("fine", "dull", return_tensors="pt")
    assert ("token_type_ids" in given) == (name in WITH_TYPES)
    assert model(**given).logits.shape == (1, 1 if kind == "scores" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_body_get_a_new_head(name: str, kind: str, tmp_path: Path):
    spec, task = setup(name, tmp_path, kind)
    body = build_model(spec, task.data, seed=5).base_model
    body.save_pretrained(tmp_path / "body")
    load_tokenizer(task.data.tokenizer_folder).save_pretrained(tmp_path / "body")
    folder = str(tmp_path / "body")
    pretrained = spec.model_copy(update={"model": ModelSpec(pretrained=folder)})
    assert takes_token_types(pretrained.model) == (name in WITH_TYPES)
    model = build_model(pretrained, task.data, seed=1)
    for key, value in body.state_dict().items():
        torch.testing.assert_close(model.base_model.state_dict()[key], value)
    assert make_task(pretrained, task.data, 0).loss(model, task.batch(0, 0, 1)).isfinite()


class TestHiddenStates:
    def test_padding_of_a_batch_changes_nothing(self, name: str, tmp_path: Path):
        spec, task = setup(name, tmp_path)
        student, teacher = (build_model(spec, task.data, seed=seed).eval() for seed in (1, 2))
        batch = task.batch(0, 0, 1)
        assert not batch["attention_mask"].all(), "without padding this proves nothing"
        padding = {"input_ids": task.data.pad_token_id}
        wider = {
            key: value
            if key == "labels"
            else nn.functional.pad(value, (0, 5), value=padding.get(key, 0))
            for key, value in batch.items()
        }
        distillation = Distillation(teacher=teacher, weight=0.5, hidden=1.0)
        losses = [task.loss(student, each, distillation).item() for each in (batch, wider)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    def test_every_layer_is_compared_where_there_is_text(self, name: str, tmp_path: Path):
        """Against texts that are read one by one, so without any padding."""
        spec, task = setup(name, tmp_path)
        student, teacher = (build_model(spec, task.data, seed=seed).eval() for seed in (1, 2))
        indices = task.global_batch(0)
        batch = task.collate(indices)
        both = [
            task.output(m, task.model_inputs(batch), "student", output_hidden_states=True)
            for m in (student, teacher)
        ]
        mine, theirs = (output.hidden_states[1:] for output in both)
        assert len(mine) == 2
        together = hidden_loss(mine, theirs, batch["attention_mask"]).item()
        errors, sizes = np.zeros(2), np.zeros(2)
        for index in indices:
            alone = task.model_inputs(task.collate(np.array([index])))
            states = [
                m(**alone, output_hidden_states=True).hidden_states[1:] for m in (student, teacher)
            ]
            for layer, (h, t) in enumerate(zip(*states, strict=True)):
                errors[layer] += (h - t).double().square().sum().item()
                sizes[layer] += t.double().square().sum().item()
        assert together == pytest.approx(float(np.mean(errors / sizes)), rel=1e-4)
