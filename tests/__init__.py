"""Tests mirror the source: `tests/orchestrator/test_spec.py` tests `orchestrator/spec.py`."""
