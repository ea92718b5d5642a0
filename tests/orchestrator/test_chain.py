"""A ladder without a trunk: every model goes on from the one above."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.embedding import LowRankEmbedding, LowRankHead
from lowrank.folded import multiply_out_
from lowrank.hf import load_pretrained
from lowrank.linear import LowRankLinear
from lowrank.surgery import find_layers
from orchestrator.export_model import with_densities
from orchestrator.ladder import Ladder
from orchestrator.records import ModelRecord
from tests.orchestrator.ladders import DENSITIES, chain_jobs
from tests.orchestrator.small import Family, make_job, method, train_to
from tests.orchestrator.test_descent import die_at, same, save_always  # noqa: F401


@pytest.fixture(scope="module")
def chain(lm: Family, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("chain")
    jobs = chain_jobs((lm.task, lm.data, lm.dense), folder, folder / "models")
    records = [train_to(folder / "models" / job.key, job) for job in jobs]
    return folder, jobs, records


def test_every_density_is_met_against_the_dense_reference(lm: Family, chain: Any):
    for density, record in zip(DENSITIES, chain[2], strict=True):
        assert density - 0.06 < with_densities(record, lm.dense).prunable <= density


def test_the_first_model_is_one_of_a_training_of_its_own(chain: Any, tmp_path: Path):
    first = chain[1][0]
    ladder = Ladder(**first.ladder)
    assert ladder.num_steps == first.method_spec.steps
    own = replace(first, snapshots=None, ladder=None)
    assert train_to(tmp_path / "out", own).export_sha256 == chain[2][0].export_sha256


def test_curves_go_on(chain: Any):
    records: list[ModelRecord] = chain[2]
    for job, record in zip(chain[1], records, strict=True):
        ladder = Ladder(**job.ladder)
        assert [point.step for point in record.curve] == list(range(1, ladder.num_steps + 1))
        assert record.ladder is not None
        charged = record.ladder.trunk_steps + record.ladder.branch_steps
        assert record.ladder.shared_steps + charged == ladder.num_steps
    assert records[2].curve[: len(records[0].curve)] == records[0].curve
    # nobody is charged for what another was
    whole = max(point.seconds for point in records[-1].curve)
    assert sum(record.train_seconds for record in records) < whole + 60


@pytest.mark.parametrize("stop", [56, 66])
def test_a_model_goes_on_with_the_same_bits(lm: Family, chain: Any, tmp_path: Path, stop: int):
    folder, _, records = chain
    job = chain_jobs((lm.task, lm.data, lm.dense), tmp_path, folder / "models")[2]
    begin, _ = Ladder(**job.ladder).part(2)
    steps = [p.step for p in records[2].curve if p.validation is not None and p.step > begin]
    die_at(job, min(steps, key=lambda step: abs(step - stop)))
    same(train_to(tmp_path / "out", job), records[2])


def test_a_model_goes_on_from_the_one_above(chain: Any, tmp_path: Path):
    """Not from the dense reference, which is all that differs here."""
    job = chain[1][1]
    other = replace(job, snapshots=None, ladder=job.ladder | {"parent": None})
    assert train_to(tmp_path / "out", other).export_sha256 != chain[2][1].export_sha256


def test_a_small_model_multiplied_out_computes_the_same(lm: Family, chain: Any):
    small = load_pretrained(Path(chain[2][1].export)).eval()
    dense = load_pretrained(Path(lm.dense.export)).eval()
    assert any(isinstance(module, LowRankLinear) for module in small.modules())
    wide = multiply_out_(dense, small)
    assert not any(isinstance(module, LowRankLinear) for module in wide.modules())
    # all that can be pruned, Conv1D as well, is a matrix again
    found = find_layers(wide, exclude=["*lm_head*"]).layers
    assert len(found) == 2 * 4
    assert {type(layer).__name__ for layer in found.values()} == {"Conv1D"}
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(
            wide(input_ids=tokens).logits, small(input_ids=tokens).logits, atol=1e-4
        )


@pytest.mark.slow
def test_a_chain_with_its_embedding(lm: Family, tmp_path: Path):
    """The table is one of the matrices, and stays tied to the output projection."""
    how = method(embeddings=True)
    dense = train_to(tmp_path / "dense", make_job(lm.task, lm.data, how))
    jobs = chain_jobs((lm.task, lm.data, dense), tmp_path, tmp_path / "models", embeddings=True)
    for density, job in zip(DENSITIES, jobs, strict=True):
        record = train_to(tmp_path / "models" / job.key, job)
        assert density - 0.06 < with_densities(record, dense).prunable <= density
    small: Any = load_pretrained(Path(record.export))
    table = small.get_input_embeddings()
    assert isinstance(table, LowRankEmbedding)
    assert isinstance(small.lm_head, LowRankHead)
    assert small.lm_head.weight is table.weight
