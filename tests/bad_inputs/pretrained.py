"""Folders of pretrained models, which somebody else made."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

from lowrank.export import WEIGHTS
from orchestrator.data.tokenization import classifier_tokenizer
from tests.bad_inputs.case import BadInput, command
from tests.jobs.specs import write_spec
from tests.lowrank import tiny_bert

GROUP = "Pretrained models"
OLD_WEIGHTS = "pytorch_model.bin"


class _Code:
    """What runs when somebody unpickles it: it leaves a file behind."""

    def __reduce__(self):
        return os.mknod, ("was-executed",)


def _pretrained(what: str, change: Callable[[Path], object]) -> BadInput:
    def made(folder: Path) -> None:
        write_spec(folder)
        model = tiny_bert(num_labels=2)
        model.save_pretrained(folder / "model")
        classifier_tokenizer(["a few words"], 40, pair=False).save_pretrained(folder / "model")
        change(folder / "model")

    change_model = ("--set", "tasks.moods.model={pretrained: model}")
    return BadInput(
        group=GROUP,
        what=what,
        made=made,
        reader="lowrank compress spec.yaml",
        read=command("compress", "spec.yaml", "--task", "moods", "-o", "out", *change_model),
        status=2,
    )


def _config(**fields: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def with_code(folder: Path) -> None:
    """A model type that transformers lacks and the folder brings."""
    (folder / "evil.py").write_text("open('was-executed', 'w')\nclass Config: ...\n")
    _config(model_type="new", auto_map={"AutoConfig": "evil.Config"})(folder)


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / OLD_WEIGHTS).write_bytes(pickle.dumps({"weight": _Code()}))


def _cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


CASES = [
    _pretrained("no tokenizer", lambda f: [p.unlink() for p in f.glob("tokenizer*")]),
    _pretrained("a tokenizer cut short", _cut("tokenizer.json")),
    _pretrained("a config cut short", _cut("config.json")),
    _pretrained("a config of another type", _config(hidden_size="wide")),
    _pretrained("code to be run", with_code),
    _pretrained("weights missing", lambda folder: (folder / WEIGHTS).unlink()),
    _pretrained("weights cut short", _cut(WEIGHTS)),
    _pretrained("weights that are text", lambda f: (f / WEIGHTS).write_text("weights")),
    _pretrained("a pickle that runs code", _pickled),
    _pretrained("a model of another kind", _config(model_type="gpt2", n_layer=1)),
]
