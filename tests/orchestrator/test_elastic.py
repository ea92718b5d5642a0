"""A number of workers within a range: what a spec may say, what fits, and whose share counts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from lowrank.hf import load_pretrained
from lowrank.weight_groups import weight_groups
from orchestrator import elastic
from orchestrator.errors import CampaignError, ClusterError
from orchestrator.room import DRIVER, check_fits, concurrent_trials
from orchestrator.spec import CampaignSpec, Resources
from orchestrator.spec_labels import matches
from orchestrator.steps import Steps, share_of_mean
from orchestrator.stretch import Stretch
from orchestrator.tasks import Distillation, TrainingTask, make_task
from orchestrator.tasks.recurrent import RecurrentLanguageModellingTask
from orchestrator.trial_keys import dense_key
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import Family, docs_task


def spec_of(batch: int = 16, task: dict[str, Any] | None = None, **resources: Any) -> CampaignSpec:
    described = docs_task("lm", 3)
    described["dense"] = described["dense"] | {"batch": batch}
    return CampaignSpec.model_validate(
        {
            "name": "c",
            "resources": resources,
            "tasks": [described | {"resources": task or {}}],
            "search": {"density": [0.5]},
        }
    )


# --------------------------------------------------------------------------- the spec


def test_a_range_may_have_uneven_shares_and_a_number_may_not():
    assert spec_of(workers=3, min_workers=2).resources.fewest == 2
    assert spec_of(workers=4).resources.fewest == 4
    assert spec_of(task={"min_workers": 1}, workers=4).resources_of(
        spec_of(task={"min_workers": 1}, workers=4).tasks[0]
    ).workers_in_words == ("1 to 4")
    with pytest.raises(ValidationError, match=r"multiple of resources\.workers, got 16 and 3"):
        spec_of(workers=3)
    with pytest.raises(ValidationError, match=r"at least resources\.workers, got 16 and 17"):
        spec_of(workers=17, min_workers=2)


@pytest.mark.parametrize(
    ("resources", "task", "message"),
    [
        ({"workers": 2, "min_workers": 3}, {}, "min_workers must be at most workers, got 3 and 2"),
        # a task that asks for less than the campaign's least
        ({"workers": 4, "min_workers": 2}, {"workers": 1}, "at most workers, got 2 and 1"),
        ({"workers": 4, "min_workers": 0}, {}, "greater than or equal to 1"),
        ({"resize_minutes": 0}, {}, "greater than 0"),
        (
            {"workers": 4, "min_workers": 2, "labels": {"kind": "spot"}},
            {},
            r"must be empty with min_workers, got \['kind'\]",
        ),
        ({"labels": {"kind": "a b"}}, {}, r"in\(one, other\) or !in\(one, other\), got 'a b'"),
        ({"labels": {"kind": "in()"}}, {}, "must be a value, !value"),
        ({"labels": {"/kind": "spot"}}, {}, "optional prefix and a slash, got '/kind'"),
        ({"labels": {"kind": "x" * 500}}, {}, "must be a value"),
    ],
)
def test_what_is_refused_says_the_rule_and_the_value(
    resources: dict[str, Any], task: dict[str, Any], message: str
):
    with pytest.raises(ValidationError, match=message):
        spec_of(task=task, **resources)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, True),
        ({"ray.io/accelerator-type": "H100"}, True),
        ({"ray.io/accelerator-type": "A100"}, False),
        ({"ray.io/accelerator-type": "in(A100, H100)"}, True),
        ({"ray.io/accelerator-type": "!in(A100, H100)"}, False),
        ({"ray.io/accelerator-type": "!A100", "zone": "b"}, True),
        ({"ray.io/accelerator-type": "H100", "zone": "c"}, False),
        ({"other": "yes"}, False),
        ({"other": "!yes"}, True),
    ],
)
def test_labels_of_nodes(wanted: dict[str, str], expected: bool):
    assert Resources(labels=wanted).labels == wanted
    assert matches(wanted, {"ray.io/accelerator-type": "H100", "zone": "b"}) is expected


def test_a_range_has_results_of_its_own_and_other_fields_change_none():
    keys = {
        str(fields): dense_key(spec, spec.tasks[0], "data")
        for fields in (
            {"workers": 2},
            {"workers": 4},
            {"workers": 4, "min_workers": 2},
            {"workers": 4, "min_workers": 4},
        )
        for spec in [spec_of(**fields)]
    }
    assert len(set(keys.values())) == len(keys)
    plain, patient = spec_of(workers=2), spec_of(workers=2, resize_minutes=1)
    assert plain.digest() == patient.digest()
    assert dense_key(plain, plain.tasks[0], "d") == dense_key(patient, patient.tasks[0], "d")
    assert plain.digest() != spec_of(workers=2, min_workers=1).digest()
    assert plain.digest() != spec_of(workers=2, labels={"kind": "spot"}).digest()


# --------------------------------------------------------------------------- room


def test_the_fewest_decide_whether_it_fits():
    there = {"CPU": 3.0, DRIVER: 4.0}
    check_fits(Resources(workers=8, min_workers=3), there, "lm")
    with pytest.raises(CampaignError, match=r"needs 4 CPU, the cluster has 3 \(4 workers\)"):
        check_fits(Resources(workers=8, min_workers=4), there, "lm")
    with pytest.raises(CampaignError, match=r"needs 4 CPU with kind: spot, the cluster has 3"):
        check_fits(Resources(workers=4, labels={"kind": "spot"}), there, "lm")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # 8 CPUs: two whole groups; or one of five, and one of the three that are left
        ({"workers": 4, "min_workers": 2}, 2),
        ({"workers": 5, "min_workers": 3}, 2),
        ({"workers": 5, "min_workers": 4}, 1),
        ({"workers": 16, "min_workers": 1}, 1),
        ({"workers": 3, "min_workers": 1, "cpus_per_worker": 2}, 2),
        ({"workers": 2, "min_workers": 1, "gpus_per_worker": 1}, 1),
        ({"workers": 1, "min_workers": 1, "concurrent_trials": 3}, 3),
    ],
)
def test_trials_side_by_side_take_what_they_may_one_after_the_other(
    fields: dict[str, Any], expected: int
):
    resources = Resources(**({"concurrent_trials": 99} | fields))
    assert concurrent_trials(resources, {"CPU": 8.0, "GPU": 2.0}) == expected


# --------------------------------------------------------------------------- shares


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_mean_of_weighted_means_is_the_mean(batch: int, world: int, seed: int):
    if world > batch:
        batch, world = world, batch
    losses = np.random.default_rng(seed).standard_normal(batch)
    weighted = [share_of_mean(batch, r, world) * losses[r::world].mean() for r in range(world)]
    assert np.mean(weighted) == pytest.approx(losses.mean(), abs=1e-12)
    if batch % world == 0:
        assert all(share_of_mean(batch, r, world) == 1 for r in range(world)), "no bit changes"


def gradients(task: TrainingTask, folder: str, world: int, distilled: bool) -> list[Tensor]:
    """Means over the workers, as DistributedDataParallel has them."""
    model, teacher = (load_pretrained(folder).double().eval() for _ in range(2))
    with torch.no_grad():
        next(iter(teacher.parameters())).mul_(1.5)
    teacher.requires_grad_(False)
    distillation = Distillation(teacher=teacher, weight=0.5, temperature=2.0, hidden=0.0)
    found: list[list[Tensor]] = []
    for rank in range(world):
        batch = task.batch(3, rank, world)
        loss = share_of_mean(task.batch_size, rank, world) * task.loss(
            model, batch, distillation if distilled else None
        )
        wanted = [p for p in model.parameters() if p.requires_grad]
        each = torch.autograd.grad(loss, wanted, allow_unused=True)
        found.append([g for g in each if g is not None])
    return [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("distilled", [False, True])
def test_uneven_workers_see_the_gradient_of_one(either: Family, distilled: bool):
    task = make_task(either.task, either.data, seed=0)
    assert task.batch_size == 8
    one = gradients(task, either.dense.export, 1, distilled)
    for world in (2, 3, 5, 8):
        for whole, shared in zip(
            one, gradients(task, either.dense.export, world, distilled), strict=True
        ):
            # losses are taken of logits in float32, whatever the model has
            assert (shared - whole).abs().max() <= 1e-5 * whole.abs().max() + 1e-8


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 3), (3, 2), (4, 1), (2, 2)])
def test_what_rows_remember_goes_to_those_who_have_the_rows(before: int, now: int):
    task = RecurrentLanguageModellingTask.__new__(RecurrentLanguageModellingTask)
    rows = torch.arange(2 * 7 * 3.0).reshape(2, 7, 3)
    memories = [{"student": rows[:, rank::before]} for rank in range(before)]
    for rank in range(now):
        found = task.shared_out(memories, rank, now)
        assert torch.equal(found["student"], rows[:, rank::now])
    assert task.shared_out([{}] * before, 0, now) == {}


# --------------------------------------------------------------------------- waiting


def test_room_is_waited_for_without_hurry_and_not_for_ever(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(elastic.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(elastic.time, "sleep", sleep)
    waits = elastic._Waits(Resources(workers=4, min_workers=2, wait_minutes=1))
    for _ in range(50):
        waits.seen(True)
    # it found some, and lost them again
    waits.seen(False)
    for _ in range(61):
        waits.seen(True)
    with pytest.raises(ClusterError, match=r"room for 2 workers must come within .* 1 minutes"):
        waits.seen(True)


def test_a_fixed_number_needs_nothing_of_rays_insides(tmp_path: Path):
    assert elastic.callbacks(Resources(workers=2), str(tmp_path)) == []
    assert elastic.num_workers(Resources(workers=2)) == 2
    assert elastic.num_workers(Resources(workers=2, min_workers=1)) == (1, 2)
    (callback,) = elastic.callbacks(Resources(workers=2, min_workers=1), str(tmp_path))
    logging.getLogger(__name__).debug("%s", callback)
    # before there is a group there is nothing to save
    callback.before_controller_execute_resize_decision(None)


class Third(LocalWorkers):
    """The first of three workers, alone: what it would do before gradients are averaged."""

    rank, world = 0, 3


def test_a_step_counts_its_share(classes: Family):
    task = make_task(classes.task, classes.data, seed=0)
    taken = []
    for by_hand in (False, True):
        model = load_pretrained(classes.dense.export).train()
        torch.manual_seed(1)
        if by_hand:
            share = task.loss(model, task.batch(0, 0, 3))
            taken.append(3 * 3 / 8 * share.detach())
        else:
            stretch = Stretch(first_step=0, num_steps=2, max_grad_norm=1.0, evaluate_every=2)
            steps = Steps(
                model, weight_groups(model.parameters(), 1e-3, 0.0), task, Third(), stretch
            )
            taken.append(steps.take(0))
    torch.testing.assert_close(*taken)
