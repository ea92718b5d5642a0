"""What the figures of a run depend on besides the models: hardware, driver, threads, versions."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lowrank.allocator import memory_is_reused
from lowrank.timing import fingerprint

PACKAGES = ("transformers", "numpy", "onnxruntime")
"""Whose code runs, or makes what is run."""
DRIVER = Path("/proc/driver/nvidia/version")


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The fingerprint of `lowrank.timing` and what a whole run adds to it; flat, JSON."""
    found = fingerprint(device, dtype)
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    if device.type == "cpu":
        found["freed memory"] = "kept" if memory_is_reused() else "given back"
    if device.type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "driver": driver_version()}
    return found | {name: installed for name in PACKAGES if (installed := _version(name))}


def driver_version(path: Path = DRIVER) -> str:
    """Of the NVIDIA driver, from the kernel or from its own tool; `unknown` if neither tells."""
    try:
        told = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", path.read_text(encoding="utf-8"))
        if told:
            return told[1]
    except OSError:
        pass
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The fields in which two fingerprints differ, each with both values."""
    return [
        f"{key}: {first.get(key, 'missing')} and {second.get(key, 'missing')}"
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
