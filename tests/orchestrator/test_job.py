"""What follows from a job's seed."""

from __future__ import annotations

from orchestrator.job import Job


def job(seed: int, dense: str | None = None) -> Job:
    return Job(key="k", task={}, method={}, data="data", seed=seed, dense=dense)


def test_the_dense_model_reads_the_data_in_the_order_of_the_seed():
    assert [job(seed).batch_seed for seed in (0, 1, 7)] == [0, 1, 7]


def test_compressions_read_the_data_in_orders_of_their_own():
    seeds = [job(seed, "dense").batch_seed for seed in range(50)]
    assert len(set(seeds)) == 50
    assert not set(seeds) & set(range(50))
    assert seeds == [job(seed, "elsewhere").batch_seed for seed in range(50)]


def test_workers_differ_in_dropout_alone():
    seeds = {job(3).worker_seed(rank) for rank in range(8)}
    assert len(seeds) == 8
    assert job(3).worker_seed(2) == job(3).worker_seed(2)
