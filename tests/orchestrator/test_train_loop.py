"""From a task to exported, recounted, reproducible models, in one process."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lowrank.errors import DensityError, ExportError, SurgeryError
from lowrank.hf import load_pretrained, load_tokenizer, save_pretrained
from lowrank.manifest import read_manifest
from orchestrator import compression, export_model, train_loop
from orchestrator.errors import ModelError, TrialError
from orchestrator.export_model import with_densities
from orchestrator.records import Densities, ModelRecord
from orchestrator.train_loop import run_job
from orchestrator.workers import LocalWorkers
from tests.orchestrator.data.tasks import language_task, text_files
from tests.orchestrator.small import (
    BERT,
    DENSE,
    GPT2,
    LENGTH,
    Family,
    make_classes,
    make_job,
    make_lm,
    method,
    ready,
    train_to,
    with_config,
)

EVALUATE = """
import json, sys
from orchestrator.promotion.checks import evaluate_artifact
from orchestrator.spec_tasks import Task
from pydantic import TypeAdapter
import torch
torch.set_num_threads(1)
for job in json.load(sys.stdin):
    task = TypeAdapter(Task).validate_python(job["task"])
    found = evaluate_artifact(job["folder"], task, job["data"])
    print(json.dumps(found.test))
"""


def stored(record: ModelRecord) -> dict[str, torch.Tensor]:
    return load_file(Path(record.export) / "model.safetensors")


def prunable(record: ModelRecord) -> list[str]:
    manifest = json.loads((Path(record.export) / "lowrank.json").read_text())
    return manifest["metadata"]["prunable"]


def stored_for(name: str, tensors: dict[str, torch.Tensor]) -> int:
    """Elements that a file holds for one matrix, as one tensor or as two factors."""
    parts = (tensors.get(f"{name}.{part}") for part in ("weight", "projection"))
    return sum(part.numel() for part in parts if part is not None)


def test_density_is_met_and_used_up(either: Family):
    original = either.dense.size.num_prunable
    for record, target in zip(either.trials, (0.5, 0.25), strict=True):
        assert record.target_density == target
        assert record.size.num_prunable <= target * original
        component = max(r["in_features"] + r["out_features"] for r in record.ranks.values())
        assert target * original - record.size.num_prunable < component
        assert record.densities == Densities.of(record.size, either.dense.size)


def test_counts_are_those_of_the_files(either: Family):
    for record in either.records:
        tensors, names = stored(record), prunable(record)
        assert record.size.num_parameters == sum(t.numel() for t in tensors.values())
        assert record.size.num_prunable == sum(stored_for(name, tensors) for name in names)
        assert record.size.num_bytes == (Path(record.export) / "model.safetensors").stat().st_size
    dense, smaller, smallest = (record.size for record in either.records)
    assert dense.num_parameters > smaller.num_parameters > smallest.num_parameters
    assert dense.macs_per_token > smaller.macs_per_token > smallest.macs_per_token


def test_dense_and_compressed_count_the_same_matrices(either: Family):
    names = {tuple(prunable(record)) for record in either.records}
    assert len(names) == 1
    for record in either.trials:
        assert tuple(record.ranks) in names


def test_macs_fall_by_what_the_matrices_lost(either: Family):
    """A token passes every matrix once: a multiply-accumulate per stored parameter."""
    for record in either.trials:
        lost = either.dense.size.num_prunable - record.size.num_prunable
        saved = either.dense.size.macs_per_token - record.size.macs_per_token
        assert saved == pytest.approx(lost)


def test_ranks_are_those_of_the_files(either: Family):
    for record in either.trials:
        tensors = stored(record)
        for name, layer in record.ranks.items():
            shape = (layer["in_features"], layer["out_features"])
            assert layer["full_rank"] == min(shape)
            assert 1 <= layer["rank"] <= layer["full_rank"]
            assert layer["dense"] == (f"{name}.projection" not in tensors)
            if not layer["dense"]:
                assert tensors[f"{name}.projection"].shape == (layer["rank"], shape[0])
                assert tensors[f"{name}.weight"].shape == (shape[1], layer["rank"])
    assert either.dense.ranks == {}


def test_records_say_how_the_model_came_about(either: Family):
    dense, *trials = either.records
    assert (dense.config, dense.projection, dense.workers) == ({}, {}, 1)
    assert {p.phase for p in dense.curve} == {"dense"}
    for record in trials:
        assert record.config == method(density=record.target_density).model_dump()
        phases = ["anneal"] * 4 + ["hold"] * 2 + ["finetune"] * 6
        assert [p.phase for p in record.curve] == phases
        assert [p.step for p in record.curve] == list(range(1, 13))
        assert set(record.projection) == {
            "expected_density",
            "realized_density",
            "validation_before",
            "validation_after",
        }
        realized = record.size.num_prunable / dense.size.num_prunable
        assert record.projection["realized_density"] == pytest.approx(realized)
        assert record.metric == dense.metric
        assert ModelRecord.load(Path(record.export) / "record.json") == record


def test_exports_reproduce_their_test_figures_elsewhere(
    lm: Family,
    classes: Family,
    scores: Family,
    tmp_path: Path,
    bare_environment: dict[str, str],
):
    wanted = [(family, record) for family in (lm, classes, scores) for record in family.records]
    jobs = [
        {
            "folder": record.export,
            "task": family.task.model_dump(mode="json"),
            "data": str(family.data.folder),
        }
        for family, record in wanted
    ]
    result = subprocess.run(
        [sys.executable, "-c", EVALUATE],
        input=json.dumps(jobs),
        cwd=tmp_path,
        env=bare_environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 9
    for (_, record), test in zip(wanted, found, strict=True):
        assert test == pytest.approx(record.test, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("kind", ["dense", "compressed"])
def test_the_same_job_gives_the_same_weights(either: Family, kind: str, tmp_path: Path):
    dense = None if kind == "dense" else either.dense.export
    density = 0.25 if kind == "compressed" else method().density
    job = make_job(either.task, either.data, method(density=density), dense)
    torch.manual_seed(12345)  # whatever the process did before
    again = train_to(tmp_path / "again", job)
    before = either.dense if kind == "dense" else either.trials[1]
    assert again.export_sha256 == before.export_sha256
    assert again.test == before.test
    assert again.ranks == before.ranks
    assert [replace(p, seconds=0) for p in again.curve] == [
        replace(p, seconds=0) for p in before.curve
    ]
    other = train_to(tmp_path / "other", replace(job, seed=4))
    assert other.export_sha256 != before.export_sha256


@pytest.mark.parametrize("kind", ["dense", "flop-l0", "low-rank", "from-scratch"])
def test_dropout_differs_between_workers(lm: Family, kind: str, monkeypatch: pytest.MonkeyPatch):
    """While training begins from the same weights on all of them."""
    begun: list[tuple[int, list[torch.Tensor]]] = []

    class Stop(Exception):
        pass

    def stop(model: torch.nn.Module, *_: Any) -> None:
        begun.append((torch.initial_seed(), [p.detach() for p in model.parameters()]))
        raise Stop

    monkeypatch.setattr(train_loop, "train", stop)
    monkeypatch.setattr(compression, "train", stop)
    how = method() if kind == "dense" else method(kind=kind)
    job = make_job(lm.task, lm.data, how, None if kind == "dense" else lm.dense.export)
    for rank in (0, 1):
        workers = LocalWorkers()
        workers.rank = rank
        with pytest.raises(Stop):
            run_job(job, workers)
    (one, first), (other, second) = begun
    assert (one, other) == (job.worker_seed(0), job.worker_seed(1))
    assert one != other
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dense", [True, False])
def test_patterns_that_match_nothing_are_named(either: Family, dense: bool):
    how = method(include=["encoder.nothing.*"])
    job = make_job(either.task, either.data, how, None if dense else either.dense.export)
    with pytest.raises(SurgeryError, match=r"'encoder.nothing.\*' matches no layer; .*0\."):
        run_job(job, LocalWorkers(lambda *_: pytest.fail("it trained")))


def test_a_density_out_of_reach_costs_no_training(lm: Family):
    job = make_job(lm.task, lm.data, method(density=0.001), lm.dense.export)
    with pytest.raises(DensityError, match=r"density >= 0\.\d+ must hold to keep each of"):
        run_job(job, LocalWorkers(lambda *_: pytest.fail("it trained")))


@pytest.mark.parametrize(
    ("make", "model", "limit"),
    [
        (make_lm, with_config(GPT2, n_positions=LENGTH - 1), LENGTH - 1),
        (make_classes, with_config(BERT, max_position_embeddings=LENGTH - 1), LENGTH - 1),
    ],
)
def test_a_model_too_short_for_the_task_costs_no_training(
    make: Any, model: dict[str, Any], limit: int, tmp_path: Path
):
    spec = make(tmp_path, model=model)
    job = make_job(spec, ready(spec, tmp_path / "cache").data, method())
    with pytest.raises(ModelError, match=rf"fails on {LENGTH} tokens .* {limit}: "):
        run_job(job, LocalWorkers(lambda *_: pytest.fail("it trained")))


def test_a_model_that_looks_into_its_layers_costs_no_training(tmp_path: Path):
    """Mamba reads the weight of a projection itself; a factorized layer has none."""
    tiny = {"hidden_size": 32, "num_hidden_layers": 1}
    spec = make_lm(tmp_path, model={"type": "mamba", "config": tiny}, dense=DENSE | {"steps": 1})
    data = ready(spec, tmp_path / "cache").data
    dense = train_to(tmp_path / "dense", make_job(spec, data, method()))
    with pytest.raises(ModelError, match=rf"fails on {LENGTH} tokens .*: .*size"):
        run_job(
            make_job(spec, data, method(), dense.export),
            LocalWorkers(lambda *_: pytest.fail("it trained")),
        )


def test_the_exported_tokenizer_cuts_where_training_did(classes: Family):
    tokenizer = load_tokenizer(Path(classes.trials[0].export))
    ids = tokenizer("fine great kind " * 50, truncation=True)["input_ids"]
    assert len(ids) == LENGTH


def test_divergence_leaves_no_model(lm: Family, tmp_path: Path):
    model = load_pretrained(lm.dense.export)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1e20 if "ln_" in name else 1)
    manifest = read_manifest(lm.dense.export)["metadata"]
    save_pretrained(model, tmp_path, manifest["auto_class"], metadata=manifest)
    checkpoints = []
    job = make_job(lm.task, lm.data, method(density=0.5), str(tmp_path))
    with pytest.raises(TrialError, match="diverged"):
        run_job(job, LocalWorkers(lambda progress, checkpoint: checkpoints.append(checkpoint)))
    assert not any(checkpoints)


def test_a_trial_whose_files_answer_otherwise_fails(
    lm: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A weight that changes on its way to the disk, with a digest that knows nothing of it."""

    def save_another(model: Any, *arguments: Any) -> Path:
        with torch.no_grad():
            model.transformer.ln_f.weight.mul_(1.01)
        return save_pretrained(model, *arguments)

    monkeypatch.setattr(export_model, "save_pretrained", save_another)
    job = make_job(lm.task, lm.data, method(density=0.5), lm.dense.export)
    checkpoints: list[Path | None] = []
    with pytest.raises(ExportError, match="logits must be within 1e-05 of the model's in memory"):
        run_job(job, LocalWorkers(lambda progress, checkpoint: checkpoints.append(checkpoint)))
    assert not any(checkpoints)


def test_text_almost_without_white_space_can_be_recorded(tmp_path: Path):
    """Its perplexity per word is beyond any float; JSON has no infinity."""
    text = "".join(f"{number:05d}" for number in range(3000))
    files = text_files(tmp_path, train=f"{text} a\n", validation=text[::-1], test=text[1::2])
    spec = language_task(files, context=LENGTH, model=GPT2, dense=DENSE | {"steps": 1})
    task = ready(spec, tmp_path / "cache")
    record = train_to(tmp_path / "dense", make_job(spec, task.data, method()))
    assert "perplexity_word" not in record.test
    assert math.isfinite(record.test["bits_per_character"])


def test_densities_over_the_target_are_refused(either: Family):
    dense, record = either.dense, either.trials[0]
    fat = replace(record.size, num_prunable=dense.size.num_prunable // 2 + 1)
    with pytest.raises(ModelError, match=r"realized density <= target .* for 0\.5 \(trial"):
        with_densities(replace(record, size=fat), dense)
    full = replace(record.size, num_prunable=dense.size.num_prunable // 2)
    assert with_densities(replace(record, size=full), dense).prunable == 0.5


def test_the_sink_receives_the_whole_curve(lm: Family, tmp_path: Path):
    points: list[Any] = []
    job = make_job(lm.task, lm.data, method(density=0.5), lm.dense.export)
    record = run_job(job, LocalWorkers(), points.extend)
    assert points == record.curve


@pytest.mark.parametrize(
    ("fields", "phases"),
    [
        ({"gated_fraction": 1.0}, {"anneal", "hold"}),
        ({"anneal_fraction": 1.0}, {"anneal", "finetune"}),
        ({"anneal_fraction": 0.0}, {"hold", "finetune"}),
        ({"kind": "low-rank"}, {"finetune"}),
        ({"kind": "from-scratch"}, {"from-scratch"}),
    ],
)
def test_phases_may_be_left_out(
    lm: Family, fields: dict[str, Any], phases: set[str], tmp_path: Path
):
    job = make_job(lm.task, lm.data, method(density=0.5, **fields), lm.dense.export)
    record = train_to(tmp_path / "model", job)
    assert {point.phase for point in record.curve} == phases
    assert with_densities(record, lm.dense).prunable <= 0.5


def test_bfloat16_trains_and_evaluates_in_float32(lm: Family, tmp_path: Path):
    task = lm.task.model_copy(update={"precision": "bfloat16"})
    record = train_to(
        tmp_path / "model", make_job(task, lm.data, method(density=0.5), lm.dense.export)
    )
    assert {str(t.dtype) for t in stored(record).values()} == {"torch.float32"}
    assert record.export_sha256 != lm.trials[0].export_sha256
