"""The campaign that is scaled: a small character model, so that its files are small too."""

from __future__ import annotations

from pathlib import Path

SPEC = """\
name: scale-{trials}
seed: 7
storage: {storage}
tracking: {{uri: "{uri}"}}
# a replayed training takes no CPU from Ray: this is how many trials are side by side
resources: {{workers: 1, cpus_per_worker: {cpus:g}, concurrent_trials: {side_by_side}}}
tasks:
  - name: letters
    kind: language-modelling
    data: {{source: python-docs}}
    level: character
    context: 32
    model:
      type: gpt2
      config: {{n_layer: 2, n_embd: 64, n_head: 2, n_positions: 64, resid_pdrop: 0,
               embd_pdrop: 0, attn_pdrop: 0}}
    dense: {{steps: 100, learning_rate: 5e-3, batch: 8}}
    max_train_examples: 2000
    max_eval_examples: 64
    evaluate_every: 50
method: {{kind: flop-l0, steps: 400}}
search:
  density: {densities}
  trials_per_density: {draws}
  repeats: 2
  penalty_lr: {{log_uniform: [0.05, 0.5]}}
measure: {{batch: [1], length: 32, repeats: 7}}
select: {{then: smallest}}
promote: {{gates: ["bytes <= 99%"]}}
"""
DENSITIES = [0.6, 0.5, 0.4, 0.3, 0.2]


def write_spec(folder: Path, trials: int, uri: str, side_by_side: int, num_cpus: int) -> Path:
    """A spec of so many trials: draws at each density, and a repeat of the best of each.

    Args:
        folder: Receives spec.yaml, and holds its storage.
        trials: In all; a multiple of twice the densities.
        uri: Of the tracking server.
        side_by_side: Trials.
        num_cpus: Of the machine.
    """
    if trials < 2 * len(DENSITIES) or trials % len(DENSITIES):
        raise SystemExit(
            f"a size must be a multiple of {len(DENSITIES)} and at least {2 * len(DENSITIES)}, "
            f"got {trials}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.yaml"
    path.write_text(
        SPEC.format(
            trials=trials,
            storage=folder / "storage",
            uri=uri,
            cpus=num_cpus / side_by_side,
            side_by_side=side_by_side,
            densities=DENSITIES,
            draws=trials // len(DENSITIES) - 1,
        ),
        encoding="utf-8",
    )
    return path
