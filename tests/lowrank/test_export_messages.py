"""What a person sees who loads a damaged export, and that docs/export.md shows just that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

import lowrank.auto  # noqa: F401 - the registration
from lowrank.errors import ExportError
from lowrank.hf import load_pretrained, save_pretrained
from tests.lowrank.test_auto import CAUSAL, NAME, PLAIN, compacted, edit, from_pretrained

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def rename(folder: Path) -> None:
    edit(folder, lambda t: t.update({f"{NAME}.other": t.pop(f"{NAME}.projection")}))


def poison(folder: Path) -> None:
    edit(folder, lambda t: t[f"{NAME}.weight"].fill_(float("nan")))


def narrower(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_layer": 1}))


def another(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "opt"}))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated file": truncate,
    "tensor renamed": rename,
    "NaN in a tensor": poison,
    "wrong architecture": another,
    "wrong size": narrower,
}
ROUTES: dict[str, Callable[[Path], Any]] = {
    "from_pretrained": lambda folder: from_pretrained(CAUSAL, folder),
    "load_pretrained": load_pretrained,
}


def shown(kind: str, route: str) -> str:
    """The message on the page for one kind of damage and one way to load."""
    pattern = rf"^\| {re.escape(kind)} \| `{route}` \| (`+)(.+)\1 \|$"
    found = re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == 1, f"{PAGE.name} must have one row for {kind} by {route}"
    return found[0][1]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_with_the_message_of_the_page(kind, route, tmp_path: Path):
    model, auto_class = compacted("gpt2")
    folder = save_pretrained(model, tmp_path, auto_class)
    DAMAGE[kind](folder)
    with pytest.raises((ExportError, SafetensorError)) as caught:
        ROUTES[route](folder)
    message = f"{caught.type.__name__}: {caught.value}".replace(str(folder), "FOLDER")
    assert message == shown(kind, route)


@pytest.mark.slow
def test_without_the_package_loading_stops_with_the_message_of_the_page(tmp_path: Path):
    model, auto_class = compacted("gpt2")
    folder = save_pretrained(model, tmp_path, auto_class)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, auto_class, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 1
    first = shown("package not installed", "from_pretrained")
    last = shown("package not installed", "from_pretrained, in the end")
    assert first in done.stderr
    assert done.stderr.rstrip().endswith(last)
