"""The MLflow model registry: aliases that one process at a time moves, with a trail of who did."""

from orchestrator.registry.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry

__all__ = ["CANDIDATE", "CHAMPION", "PREVIOUS", "Registry"]
