"""The one object that a training loop talks to while a model is pruned.

pruner = Pruner(model, FlopL0(density=0.3), include=["encoder.*"])
optimizer = torch.optim.AdamW(pruner.parameter_groups(learning_rate=1e-3))
for batch in batches:
    loss = pruner.model(**batch).loss + pruner.penalty()
    loss.backward(); optimizer.step(); optimizer.zero_grad(); pruner.step()
small = pruner.finish()        # exact budget, plain modules; fine-tune it, then lowrank.save
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.density import LayerShape, check_density, expected_density
from lowrank.errors import LowRankError
from lowrank.gate import NOISE_EPS, GateConfig
from lowrank.lagrangian import AugmentedLagrangian
from lowrank.linear import GatedLinear, layer_shape
from lowrank.projection import Projection, floor_ranks, project
from lowrank.schedule import linear_anneal
from lowrank.surgery import find_layers, replace_layers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopL0:
    """Factorized L0 pruning (Wang et al. 2020, arXiv 1910.04732), gated phase."""

    density: float
    """Target, 0 < density <= 1, of the parameters of the matched matrices."""
    anneal_steps: int = 200
    """Steps over which the target falls from 1 to `density`, linearly."""
    hold_steps: int = 60
    """Steps at the final target."""
    penalty_lr: float = 0.2
    """Ascent rate of the multipliers."""
    gate_lr: float | None = None
    """Rate of log_alpha. Default 30 / (anneal + hold steps): Adam moves a parameter by about its
    rate per step, and a gate has about 7 units from open to shut, so it can shut in a quarter of
    the phase. At half that rate the multipliers wind up before the first gate moves, and the
    density overshoots (docs/results/gates.md)."""
    gate: GateConfig = field(default_factory=GateConfig)
    min_rank: int = 1

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.anneal_steps < 0 or self.hold_steps < 0 or self.anneal_steps + self.hold_steps < 1:
            raise LowRankError(
                "anneal_steps >= 0, hold_steps >= 0 and their sum >= 1 must hold, "
                f"got {self.anneal_steps} and {self.hold_steps}"
            )
        if self.gate_lr is not None and not self.gate_lr > 0:
            raise LowRankError(f"gate_lr > 0 must hold, got {self.gate_lr}")
        if self.min_rank < 1:
            raise LowRankError(f"min_rank >= 1 must hold, got {self.min_rank}")

    @property
    def gated_steps(self) -> int:
        return self.anneal_steps + self.hold_steps

    @property
    def resolved_gate_lr(self) -> float:
        return self.gate_lr if self.gate_lr is not None else 30.0 / self.gated_steps


class Pruner:
    """Inserts gates, holds the density to its schedule, projects and compacts.

    The noise of every gate is a function of the seed and the step alone: all uses of a layer,
    all micro-batches of an accumulated step and all data-parallel workers see one sample, and a
    resumed run sees the one it would have seen.

    Args:
        model: Changed in place (`pruner.model` differs only if the model is itself a layer).
        method: Target and rates.
        include: Patterns of the layers to factorize (see `find_layers`).
        exclude: Patterns that win over `include`.
        seed: Of the gate noise.
    """

    def __init__(
        self,
        model: nn.Module,
        method: FlopL0,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.method, self.seed, self.step_index = method, seed, 0
        match = find_layers(model, include, exclude)
        shapes = {name: layer_shape(layer) for name, layer in match.layers.items()}
        # before any training: a target that no projection can meet is known already
        floor_ranks(shapes, method.density, method.min_rank)
        gated = {name: _gated(name, layer, method) for name, layer in match.layers.items()}
        by_identity = {id(layer): gated[name] for name, layer in match.layers.items()}
        self.model = replace_layers(model, lambda _, module: by_identity.get(id(module)))
        self.layers: dict[str, GatedLinear] = gated
        self.shapes: dict[str, LayerShape] = shapes
        self.lagrangian = AugmentedLagrangian(method.penalty_lr)
        self._draw_noise()
        logger.info("factorized %d layers, %d parameters", len(gated), self.num_dense)

    @property
    def num_dense(self) -> int:
        """Original parameters of the matched matrices."""
        return sum(shape.num_dense for shape in self.shapes.values())

    @property
    def target(self) -> float:
        """Scheduled density of the current step."""
        return linear_anneal(self.step_index, 1.0, self.method.density, self.method.anneal_steps)

    def expected_density(self) -> Tensor:
        """Scalar float32, differentiable in the gates; in [0, 1]."""
        self._check_not_finished()
        # the penalty stays float32 when the caller's autocast region includes it
        with torch.autocast(self._device.type, enabled=False):
            open_prob = {name: layer.gate.open_prob() for name, layer in self.layers.items()}
            return expected_density(open_prob, self.shapes)

    def penalty(self) -> Tensor:
        """To be added to the loss, once per optimizer step (divide by the number of micro-batches
        when gradients are accumulated)."""
        return self.lagrangian.penalty(self.expected_density(), self.target)

    def step(self) -> None:
        """After the optimizer's step: multipliers ascend, the target moves on, gates redraw."""
        with torch.no_grad():
            self.lagrangian.ascend(float(self.expected_density()), self.target)
        self.step_index += 1
        self._draw_noise()

    def parameter_groups(
        self, learning_rate: float, weight_decay: float = 0.01
    ) -> list[dict[str, Any]]:
        """Groups for an Adam-like optimizer.

        Gates have their own rate, no decay (it would pull them towards half open), and an
        epsilon below the tiny gradient of a nearly saturated gate. Vectors (biases, norms) are
        not decayed either.
        """
        gates = [layer.gate.log_alpha for layer in self.layers.values()]
        known = {id(gate) for gate in gates}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
        return [
            {
                "params": [p for p in rest if p.ndim > 1],
                "lr": learning_rate,
                "weight_decay": weight_decay,
            },
            {"params": [p for p in rest if p.ndim <= 1], "lr": learning_rate, "weight_decay": 0.0},
            {
                "params": gates,
                "lr": self.method.resolved_gate_lr,
                "weight_decay": 0.0,
                "eps": 1e-12,
            },
        ]

    def project(self) -> Projection:
        """Which components stay, on the budget of the final target. Changes nothing."""
        scores = {
            name: layer.gate.log_alpha.detach().float().cpu() for name, layer in self.layers.items()
        }
        broken = [name for name, score in scores.items() if not torch.isfinite(score).all()]
        if broken:
            raise LowRankError(f"gates are not finite, training diverged: {', '.join(broken)}")
        return project(scores, self.shapes, self.method.density, self.method.min_rank)

    def finish(self, projection: Projection | None = None) -> nn.Module:
        """Project and compact: the gated layers leave the model, plain ones take their place.

        The parameters are new ones: build a new optimizer for what follows.
        """
        self._check_not_finished()
        projection = projection or self.project()
        small = {
            id(layer): layer.compact(projection.keep[name].to(layer.up.device))
            for name, layer in self.layers.items()
        }
        self.model = replace_layers(self.model, lambda _, module: small.get(id(module)))
        self.layers = {}
        return self.model

    def state_dict(self) -> dict[str, Tensor]:
        """Multipliers and step; factors and gates are in the model's own state."""
        state = {f"lagrangian.{k}": v for k, v in self.lagrangian.state_dict().items()}
        return state | {"step_index": torch.tensor(self.step_index)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        prefix = "lagrangian."
        self.lagrangian.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
        self.step_index = int(state["step_index"])
        self._draw_noise()

    def _check_not_finished(self) -> None:
        if not self.layers:
            raise LowRankError("the pruner is finished: its gates have left the model")

    @property
    def _device(self) -> torch.device:
        return next(iter(self.layers.values())).up.device

    def _draw_noise(self) -> None:
        digest = hashlib.sha256(f"gate-noise:{self.seed}:{self.step_index}".encode()).digest()
        # the CPU generator gives the same stream on every machine, a CUDA one does not
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        for layer in self.layers.values():
            uniform = torch.rand(layer.gate.noise.shape, generator=generator)
            layer.gate.noise.copy_(uniform.clamp(NOISE_EPS, 1 - NOISE_EPS))


def _gated(name: str, layer: nn.Module, method: FlopL0) -> GatedLinear:
    try:
        return GatedLinear(layer, method.gate)
    except LowRankError as error:
        raise LowRankError(f"layer {name!r}: {error}") from error
