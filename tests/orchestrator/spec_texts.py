"""A small valid spec as text, for tests that break one thing in it."""

from __future__ import annotations

from pathlib import Path

VALID = """\
name: small-fleet
seed: 7
tasks:
  - name: docs-lm
    kind: language-modelling
    data: {source: python-docs}
    model: {type: gpt2, config: {n_layer: 4}}
    dense: {steps: 600, learning_rate: 2e-3}
  - name: sst
    kind: classification
    data: {source: files, train: train.tsv}
    model: {pretrained: "package:mini"}
    dense: {steps: 50, learning_rate: 1e-4}
    method: {density: 0.5}
search:
  density: [0.5, 0.3]
  gate_lr: {log_uniform: [0.01, 1]}
"""


def write_spec(folder: Path, text: str = VALID, name: str = "spec.yaml") -> Path:
    """Write a spec beside the data file that `VALID` names."""
    (folder / "train.tsv").write_text("sentence\tlabel\nfine\t1\n")
    path = folder / name
    path.write_text(text)
    return path


def broken(old: str, new: str) -> str:
    """`VALID` with one piece replaced."""
    assert VALID.count(old) == 1, f"{old!r} must occur once in VALID"
    return VALID.replace(old, new)
