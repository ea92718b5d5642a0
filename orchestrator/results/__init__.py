"""The page of a comparison campaign, written from MLflow's records alone."""

from orchestrator.results.page import NOTES, Asked, read_notes, write_results
from orchestrator.results.read import NotStartedError, Results, read_results

__all__ = [
    "NOTES",
    "Asked",
    "NotStartedError",
    "Results",
    "read_notes",
    "read_results",
    "write_results",
]
