"""From a picked model to the champion: registered, fetched, judged again, promoted or refused."""

from orchestrator.promotion.gate import (
    Case,
    difference,
    examine,
    promote_version,
    register_and_promote,
    registered_name,
)

__all__ = [
    "Case",
    "difference",
    "examine",
    "promote_version",
    "register_and_promote",
    "registered_name",
]
