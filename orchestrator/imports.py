"""Imports of a process that loads code which comes and goes.

MLflow puts the code of every model that it loads in front of `sys.path` and never takes it off. A
trial's process logs one model after the other, each is loaded once to be checked, and with every
further place to look, every import takes longer: after 130 models to log one took three times as
long.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

MODEL_CODE = "code_model_"
"""How MLflow calls the code of a model, with another number for each time that it is loaded."""


@contextmanager
def imports_restored() -> Iterator[None]:
    """Afterwards modules are looked for where they were before, and models' code is forgotten; what
    else was imported stays."""
    path, modules = sys.path, set(sys.modules)
    places = list(path)
    try:
        yield
    finally:
        for place in set(sys.path) - set(places):
            sys.path_importer_cache.pop(place, None)
        path[:] = places
        sys.path = path  # MLflow makes a new list
        for name in set(sys.modules) - modules:
            if name.startswith(MODEL_CODE):
                del sys.modules[name]
