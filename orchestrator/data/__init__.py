"""Raw text in, prepared data out: read, split without overlap, tokenize once, keep on disk.

`prepare_data` does all of it; every worker then opens the folder with `PreparedData.open`.
"""

from orchestrator.data.prepare import prepare_data
from orchestrator.data.prepared import Examples, PreparedData, describe
from orchestrator.data.splits import SPLITS

__all__ = ["SPLITS", "Examples", "PreparedData", "describe", "prepare_data"]
