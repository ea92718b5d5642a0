"""Memory for activations that is not given back to the kernel between two layers.

glibc returns large blocks when they are freed, and the next layer asks for them again: the kernel
then clears and maps every page anew. A pass of 16 x 128 tokens through an encoder of BERT-base's
size allocates some gigabytes so, and the smaller the products have become, the larger is that share
(docs/results/speed.md). Servers of models usually load another allocator; this needs none.
"""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h; its settings can be found in mallopt(3)."""
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's own switch: blocks of 2 MiB and more ask for huge pages. Read at its first allocation."""

_reused = False


def reuse_memory() -> bool:
    """Keep what is freed for the next pass, and ask for huge pages; for the whole process.

    Before the first tensor, or huge pages come too late. The process stays as large as it ever was.
    On systems without glibc nothing is changed, and nothing on a GPU, whose memory torch keeps
    anyway.

    Returns:
        Whether memory is kept.
    """
    global _reused
    if platform.libc_ver()[0] != "glibc":
        return False
    os.environ.setdefault(_HUGE_PAGES, "1")
    mallopt = ctypes.CDLL(None).mallopt
    # no blocks of their own from the kernel, and none at the end of the heap goes back
    _reused = bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
    return _reused


def memory_is_reused() -> bool:
    """Whether `reuse_memory` has been called, and took effect."""
    return _reused
