"""Freed memory that stays in the process, seen from the kernel's side."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")

PASSES = """
import resource, sys
import torch, lowrank, transformers
from lowrank.allocator import memory_is_reused, reuse_memory
assert not memory_is_reused()
if sys.argv[1] == "reused":
    assert reuse_memory() and memory_is_reused()

def faults(passes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        # larger than any block that glibc keeps on its own
        [torch.ones(2**24) for _ in range(2)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

# the heap grows by a block now and then until its free places fit: three passes at most were seen
faults(10)
print(faults(10))
"""


@glibc
def test_passes_ask_for_no_new_pages_once_the_heap_has_its_size():
    def faults(memory: str) -> int:
        command = [sys.executable, "-c", PASSES, memory]
        # huge pages alone would be 512 times fewer
        env = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        return int(done.stdout)

    # 10 passes of 128 MiB: 327,680 pages of 4 KiB, or fewer where huge ones are given unasked
    assert faults("reused") < faults("given back") / 100


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    from lowrank import allocator

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    # another test of this process may have called it where it works
    monkeypatch.setattr(allocator, "_reused", False)
    assert not allocator.reuse_memory()
    assert not allocator.memory_is_reused()
