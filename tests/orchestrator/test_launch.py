"""Launches on their way through Ray Tune."""

from __future__ import annotations

import copy
import pickle

from ray import tune
from ray.tune.search.variant_generator import generate_variants

from orchestrator.launch import Fixed


def test_tune_hands_on_each_launch_of_its_grid_and_copies_none():
    grid = [Fixed(job={"key": str(number)}) for number in range(5)]
    space = {"config": {"launch": tune.grid_search(grid)}}
    found = [spec["config"]["launch"] for _, spec in generate_variants(space)]
    assert [each["job"]["key"] for each in found] == ["0", "1", "2", "3", "4"]
    assert all(a is b for a, b in zip(found, grid, strict=True))


def test_it_is_a_dictionary_wherever_it_arrives():
    there = pickle.loads(pickle.dumps(Fixed(job={"key": "a"})))
    assert dict(there) == {"job": {"key": "a"}}
    assert copy.deepcopy(there) is there
