"""Models with an adaptive vocabulary: their clusters, their loss, a whole compression."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lowrank.counting import num_matrix_parameters
from lowrank.distillation import Distillation
from lowrank.hf import load_pretrained
from orchestrator.compression import _counts, make_pruner
from orchestrator.data.prepare import prepare_data
from orchestrator.errors import ModelError
from orchestrator.export_model import with_densities
from orchestrator.methods import make_method
from orchestrator.models import CLUSTER_SHARES, build_config, build_model, takes_targets
from orchestrator.spec import MethodSpec
from orchestrator.spec_tasks import LanguageModelling, ModelSpec
from orchestrator.tasks import make_task
from orchestrator.tasks.clustered import ClusteredLanguageModellingTask
from orchestrator.tasks.language_modelling import LanguageModellingTask
from orchestrator.training import evaluate
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import DENSE, GPT2, Family, make_job, make_lm, train_to

MODEL: dict[str, Any] = {
    "type": "adaptive-decoder",
    "config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "reduction": 2,
    },
}
METHOD: dict[str, Any] = {"density": 0.4, "steps": 8, "calibration_batches": 2, "embeddings": True}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("words")
    task = make_lm(folder / "raw", level="word", model=MODEL, dense=DENSE | {"steps": 6})
    data = prepare_data(task, folder / "cache", None)
    dense = train_to(folder / "dense", make_job(task, data, MethodSpec(embeddings=True)))
    return Family(task=task, data=data, dense=dense, trials=[])


def with_model(task: Any, **fields: Any) -> LanguageModelling:
    model = ModelSpec(type=MODEL["type"], config=MODEL["config"] | fields)
    return task.model_copy(update={"model": model})


class TestClusters:
    def test_ids_are_sorted_by_frequency_but_for_the_special_ones(self, words: Family):
        counts = words.data.token_counts("train")
        assert (np.diff(counts[2:]) <= 0).all()
        assert counts.sum() == len(words.data.tokens("train"))

    def test_are_cut_where_the_words_make_up_their_shares(self, words: Family):
        cutoffs = build_config(words.task, words.data).cutoffs
        counts = Counter(words.data.tokens("train").tolist())
        total = sum(counts.values())
        assert len(cutoffs) == len(CLUSTER_SHARES)
        for cutoff, share in zip(cutoffs, CLUSTER_SHARES, strict=True):
            before = sum(counts[token] for token in range(cutoff))
            assert before >= share * total > before - counts[cutoff - 1]

    def test_are_those_of_the_spec_where_it_gives_them(self, words: Family):
        assert build_config(with_model(words.task, cutoffs=[9, 50]), words.data).cutoffs == [9, 50]
        with pytest.raises(ModelError, match="0 < cutoffs, rising, < vocab_size must hold"):
            build_config(with_model(words.task, cutoffs=[50, 9]), words.data)

    def test_need_words(self, lm: Family):
        with pytest.raises(ModelError, match=r"needs `level: word`.*, got 'character'"):
            build_config(with_model(lm.task), lm.data)


class TestLoss:
    def test_is_that_of_the_whole_vocabulary(self, words: Family):
        task = make_task(words.task, words.data, seed=0)
        assert type(task) is ClusteredLanguageModellingTask
        model = build_model(words.task, words.data, seed=1).eval()
        batch = task.batch(0, 0, 1)
        logits = model(input_ids=batch["input_ids"]).logits
        wanted = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        assert task.loss(model, batch).item() == pytest.approx(wanted.item(), rel=1e-5)

    def test_evaluation_is_that_of_the_whole_vocabulary(self, words: Family):
        model = build_model(words.task, words.data, seed=1)
        found = evaluate(
            model, make_task(words.task, words.data, seed=0), LocalWorkers(), "validation"
        )
        plain = LanguageModellingTask(words.task, words.data, seed=0)
        wanted = evaluate(model, plain, LocalWorkers(), "validation")
        assert found == pytest.approx(wanted, rel=1e-5)
        assert "perplexity_word" in found

    @pytest.mark.parametrize("hidden", [0.0, 0.2])
    def test_of_a_teacher_with_hidden_states(self, words: Family, hidden: float):
        """One that answers as the model does adds nothing."""
        task = make_task(words.task, words.data, seed=0)
        model, other = (build_model(words.task, words.data, seed=seed).eval() for seed in (1, 2))
        batch = task.batch(0, 0, 1)
        hard = task.loss(model, batch).item()
        same = Distillation(teacher=model, weight=0.4, hidden=hidden)
        assert task.loss(model, batch, same).item() == pytest.approx(0.6 * hard, rel=1e-5)
        loss = task.loss(model, batch, Distillation(teacher=other, weight=0.4, hidden=hidden))
        assert loss.item() > 0.6 * hard
        loss.backward()
        tables = model.model.embed_tokens.clusters
        assert all(table.weight.grad is not None for table in tables)
        assert all(p.grad is None for p in other.parameters())

    def test_other_models_have_the_plain_task(self, lm: Family, words: Family):
        assert not takes_targets(ModelSpec(**GPT2))
        assert type(make_task(lm.task, lm.data, seed=0)) is LanguageModellingTask
        assert takes_targets(ModelSpec(pretrained=words.dense.export))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "fields",
    [{"kind": "adaptive"}, {"kind": "flop-l0", "start": "svd"}, {"kind": "adaptive", "distill": 0}],
)
def test_a_whole_compression(words: Family, tied: bool, fields: dict[str, Any], tmp_path: Path):
    family = words
    if not tied:
        task = with_model(words.task, tie_word_embeddings=False)
        job = make_job(task, words.data, MethodSpec(embeddings=True))
        family = replace(words, task=task, dense=train_to(tmp_path / "dense", job))
    spec = MethodSpec(**METHOD | fields)
    job = make_job(family.task, family.data, spec, family.dense.export)
    record = train_to(tmp_path / "model", job)
    densities = with_densities(record, family.dense)
    assert densities.prunable <= 0.4
    clusters = [name for name in record.ranks if "clusters" in name]
    assert len(clusters) == (3 if tied else 6)
    model = load_pretrained(record.export)
    for name in clusters:
        layer = record.ranks[name]
        stored = layer["rank"] * (layer["in_features"] + layer["out_features"])
        assert num_matrix_parameters(model, [name]) == stored
        assert layer["factored"] == 1
    task = make_task(family.task, family.data, seed=0)
    assert evaluate(model, task, LocalWorkers(), "test") == pytest.approx(record.test)


def test_clusters_start_from_the_counts_of_their_own_words(words: Family):
    job = make_job(words.task, words.data, MethodSpec(**METHOD), words.dense.export)
    task = make_task(words.task, words.data, seed=0)
    model = load_pretrained(words.dense.export)
    counts = [_counts(task, table) for table in model.model.embed_tokens.clusters]
    assert torch.cat(counts).tolist() == words.data.token_counts("train").tolist()
    method = make_method(job.method_spec)
    pruner = make_pruner(job, method, model, task, LocalWorkers())
    assert pruner.model.model.embed_tokens.clusters[1].first_token == len(counts[0])


@pytest.mark.parametrize("form", ["width", "low-rank"])
def test_a_small_one_from_scratch(words: Family, form: str, tmp_path: Path):
    fields = {"kind": "from-scratch", "form": form, "density": 0.4, "steps": 4, "embeddings": True}
    job = make_job(words.task, words.data, MethodSpec(**fields), words.dense.export)
    record = train_to(tmp_path / "model", job)
    assert with_densities(record, words.dense).prunable <= 0.4
    if form == "width":
        config = load_pretrained(record.export).config
        assert config.hidden_size < 16
        assert config.cutoffs == build_config(words.task, words.data).cutoffs
