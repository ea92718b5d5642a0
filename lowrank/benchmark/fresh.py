"""Load one exported model in this process, run it once, and print what that took as JSON.

Started by `lowrank.benchmark.resources`, once per model: a process that has held another model has
that one's peak.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lowrank.benchmark.phases import Work, forward, make_inputs


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--auto-class", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--phase", choices=["forward", "prefill"], required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = Work(options.phase, options.batch, options.length)
    json.dump(measure(options, work), sys.stdout)


def measure(options: Any, work: Work) -> dict[str, Any]:
    """Seconds to load, and bytes at the highest point of loading and running once."""
    import transformers

    from lowrank import auto  # noqa: F401 (the registration)

    device = torch.device(options.device)
    config = transformers.AutoConfig.from_pretrained(options.folder, trust_remote_code=False)
    for name in config.architectures or []:
        getattr(transformers, name, None)  # its module is imported before the clock starts
    if device.type == "cuda":
        torch.zeros(1, device=device)
        torch.cuda.synchronize()
    before, start = peak_bytes(), time.perf_counter()
    auto_class = getattr(transformers, options.auto_class)
    dtype = getattr(torch, options.dtype)
    model = auto_class.from_pretrained(options.folder, dtype=dtype, trust_remote_code=False)
    model = model.to(device).eval()
    if device.type == "cuda":
        torch.cuda.synchronize()
    load_s, loaded = time.perf_counter() - start, peak_bytes()
    with torch.inference_mode():
        forward(model, model, make_inputs(model, work), work)()
    found = {"load_s": load_s, "start_bytes": before, "load_peak_bytes": loaded}
    found["peak_bytes"] = peak_bytes()
    if device.type == "cuda":
        torch.cuda.synchronize()
        found["device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def peak_bytes() -> int:
    """The most resident memory this process has had."""
    try:
        # not ru_maxrss, which on Linux begins with the size of the process that started this one
        told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    except OSError:
        told = None
    if told:
        return int(told[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
