"""Two campaigns of some minutes that differ in everything that a plan has to know: the kind of task
and model, workers, trials side by side, methods, how trials come in rounds."""

from __future__ import annotations

LETTERS = """\
# a character language model on two data-parallel workers, one trial at a time, with a teacher
name: letters
seed: 11
storage: {storage}
resources: {{workers: 2, cpus_per_worker: 1}}
tasks:
  - name: docs-lm
    kind: language-modelling
    data: {{source: python-docs}}
    level: character
    context: 128
    model:
      type: gpt2
      config: {{n_layer: 3, n_embd: 128, n_head: 4, n_positions: 128, resid_pdrop: 0,
               embd_pdrop: 0, attn_pdrop: 0, initializer_range: 0.05}}
    dense: {{steps: 500, learning_rate: 4e-3, batch: 16}}
    max_eval_examples: 400
    evaluate_every: 100
method: {{steps: 300, distill: 0.5}}
search: {{density: [0.5, 0.3, 0.15]}}
measure: {{batch: [1, 32], length: 64, repeats: 9}}
select: {{then: smallest}}
promote: {{gates: ["bytes <= 80%"]}}
"""
PACKAGES = """\
# a classifier of short texts, one worker, two trials side by side, methods that search and repeat
name: packages
seed: 12
storage: {storage}
resources: {{workers: 1, cpus_per_worker: 1, concurrent_trials: 2}}
tasks:
  - name: package-of-docstring
    kind: classification
    data: {{source: python-docs, classes: 8}}
    max_length: 64
    vocab_size: 4096
    model:
      type: bert
      config: {{num_hidden_layers: 3, hidden_size: 128, num_attention_heads: 4,
               intermediate_size: 512, max_position_embeddings: 128}}
    dense: {{steps: 300, learning_rate: 1e-3, batch: 32}}
    evaluate_every: 50
method: {{steps: 250, finetune_learning_rate: 1e-3, distill: 0}}
search:
  density: [0.3]
  methods:
    flop-l0: {{kind: flop-l0, penalty_lr: {{log_uniform: [0.1, 0.5]}}, trials_per_density: 2,
              repeats: 2}}
    uniform: {{kind: low-rank}}
    weights: {{kind: agp}}
measure: {{batch: [1, 32], length: 64, repeats: 9}}
select: {{then: smallest}}
promote: {{gates: ["quality_drop <= 50%"]}}
"""
SPECS = {"letters": LETTERS, "packages": PACKAGES}
