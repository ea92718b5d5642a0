from __future__ import annotations

import json

import pytest
import torch

from lowrank.benchmark.environment import differences, driver_version, environment
from lowrank.timing import fingerprint

TOLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n"


def test_it_is_the_fingerprint_and_the_versions():
    found = environment(torch.device("cpu"), torch.float32)
    assert json.loads(json.dumps(found)) == found
    assert fingerprint(torch.device("cpu"), torch.float32).items() <= found.items()
    assert found.keys() >= {"instructions", "transformers", "numpy"}
    assert "driver" not in found


@pytest.mark.gpu
def test_on_a_gpu_the_driver_is_named():
    found = environment(torch.device("cuda"), torch.bfloat16)
    assert found["driver"] != "unknown"
    assert found["cuda"]


@pytest.mark.parametrize(("text", "version"), [(TOLD, "550.54.15"), (OPEN, "570.86.10")])
def test_the_kernel_tells_the_drivers_version(tmp_path, text, version):
    path = tmp_path / "version"
    path.write_text(text)
    assert driver_version(path) == version


def test_without_a_driver_it_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_version(tmp_path / "absent") == "unknown"


def test_differences_name_field_and_values():
    first = {"threads": 2, "dtype": "float32", "driver": "1"}
    second = {"threads": 4, "dtype": "float32"}
    assert differences(first, first) == []
    assert differences(first, second) == ["driver: 1 and missing", "threads: 2 and 4"]
