"""A small campaign as a file, for tests of the command line."""

from __future__ import annotations

from pathlib import Path

from tests.orchestrator.data.tasks import prose, table, text_files
from tests.orchestrator.small import reviews

SPEC = """\
name: small
seed: 3
storage: {storage}
tasks:
  - name: letters
    kind: language-modelling
    data: {{source: files, train: train.txt}}
    context: 16
    model: {{type: gpt2, config: {{n_layer: 1, n_embd: 32, n_head: 2, n_positions: 16}}}}
    dense: {{steps: 6, learning_rate: 5e-3, batch: 8}}
    max_eval_examples: 12
    evaluate_every: 3
  - name: moods
    kind: classification
    data: {{source: files, train: train.tsv}}
    max_length: 16
    vocab_size: 160
    model:
      type: bert
      config: {{num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2,
               intermediate_size: 64, max_position_embeddings: 16}}
    dense: {{steps: 6, learning_rate: 5e-3, batch: 8}}
method: {{kind: flop-l0, steps: 8, gated_fraction: 0.5, start: svd, density: 0.4}}
search:
  density: [0.5, 0.25]
  trials_per_density: 2
  penalty_lr: {{log_uniform: [0.01, 1]}}
promote: {{gates: ["bytes <= 99%"]}}
"""


def write_spec(folder: Path, old: str = "", new: str = "") -> Path:
    """Write the spec, with one piece replaced, beside its data; results go to `folder/runs`."""
    text_files(folder, train=prose(120))
    (folder / "train.tsv").write_text(table(*reviews(80)))
    text = SPEC.format(storage=folder / "runs")
    if old:
        assert text.count(old) == 1, f"{old!r} must occur once in the spec"
        text = text.replace(old, new)
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def line_of(path: Path, piece: str) -> int:
    """Number of the line that holds a piece of text."""
    (found,) = (n for n, line in enumerate(path.read_text().splitlines(), 1) if piece in line)
    return found
