"""The one object that a training loop talks to while a model is pruned.

pruner = Pruner(model, Adaptive(density=0.3), include=["encoder.*"], moments=moments)
optimizer = torch.optim.AdamW(pruner.parameter_groups(learning_rate=1e-3))
for batch in batches:                    # pruner.method.gated_steps of them
    loss = pruner.model(**batch).loss + pruner.penalty()
    loss.backward(); optimizer.step(); optimizer.zero_grad(); pruner.step()
small = pruner.finish()        # exact budget, plain modules; fine-tune it, then lowrank.save
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.currency import Currency
from lowrank.density import LayerShape, dense_from, realized_density
from lowrank.errors import LowRankError
from lowrank.methods.base import Method
from lowrank.moments import InputMoments
from lowrank.projection import Projection, floor_units, project
from lowrank.prunable import prunables
from lowrank.pruned import GatedFactors, PrunedLayer
from lowrank.shrinking import (
    Swap,
    check_masks,
    components_to_keep,
    follow,
    masks_of,
    of_the_start,
)
from lowrank.surgery import find_layers, replace_layers
from lowrank.weight_groups import weight_groups

logger = logging.getLogger(__name__)

PRESENT = "present."
"""Before the names of layers: which of the components of the start are still there."""
KEEP = "keep."
"""The same in the state of a finished pruner: which units of the start stayed."""


class Pruner:
    """Inserts a method's layers, drives them through the gated phase, projects and compacts.

    What a method draws is a function of the seed and the step alone: all uses of a layer, all
    micro-batches of an accumulated step and all data-parallel workers see one sample, and a
    resumed run sees the one it would have seen.

    Args:
        model: Changed in place (`pruner.model` differs only if the model is itself a layer).
        method: Target and rates.
        include: Patterns of the layers to prune (see `find_layers`).
        exclude: Patterns that win over `include`.
        embeddings: Whether `include` selects embeddings too.
        seed: Of everything the method draws.
        moments: Inputs' moments of each layer, for methods that start from them; of an embedding
            those of its head's.
        counts: How often each token occurs in the training data, [num_embeddings] per embedding,
            for the same methods; all alike by default.
        currency: What the budget is counted in; parameters by default.

    Raises:
        SurgeryError: No layer matches.
        DensityError: The density is below what the method's floors need.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        *,
        embeddings: bool = False,
        seed: int = 0,
        moments: Mapping[str, InputMoments] | None = None,
        counts: Mapping[str, Tensor] | None = None,
        currency: Currency | None = None,
    ) -> None:
        self.method, self.seed = method, seed
        currency = currency or Currency()
        match = find_layers(model, include, exclude, embeddings)
        dense = prunables(match, moments or {}, counts or {})
        self.shapes: dict[str, LayerShape] = {name: each.shape for name, each in dense.items()}
        self.layers: dict[str, PrunedLayer] = method.layers(model, dense)
        self.control = method.control(self.layers, currency)
        self._place_budget()
        # last, so that a refusal leaves the model as it was
        new: dict[int, nn.Module] = {}
        for name, layer in self.layers.items():
            new |= zip(map(id, dense[name].modules), layer.stand_ins, strict=True)
        self.model = replace_layers(model, lambda _, module: new.get(id(module)))
        self._keep: dict[str, Tensor] = {}
        # of factorized layers: nothing else loses units before the projection
        self.present: dict[str, Tensor] = {
            name: torch.ones(layer.num_components, dtype=torch.bool)
            for name, layer in self.layers.items()
            if isinstance(layer, GatedFactors)
        }
        self._begin_step()
        logger.info("%d layers, %d parameters to prune", len(self.layers), self.num_dense)

    @property
    def num_dense(self) -> int:
        """Original parameters of the matched matrices."""
        return sum(shape.num_dense for shape in self.shapes.values())

    @property
    def step_index(self) -> int:
        return self.control.step_index

    @property
    def finished(self) -> bool:
        """Whether the pruned layers have left the model."""
        return not self.layers

    @property
    def target(self) -> float:
        """Scheduled density of the current step."""
        return self.control.target

    def expected_density(self) -> Tensor:
        """Scalar float32, differentiable in the gates; in [0, 1]."""
        self._check_not_finished()
        return self.control.expected_density()

    def penalty(self) -> Tensor | float:
        """To be added to the loss, once per optimizer step (divide by the number of micro-batches
        when gradients are accumulated)."""
        self._check_not_finished()
        return self.control.penalty()

    def step(self) -> None:
        """After the optimizer's step: multipliers ascend or masks move, the target moves on, gates
        redraw."""
        self._check_not_finished()
        self.control.end_step()
        self._begin_step()

    def parameter_groups(
        self, learning_rate: float, weight_decay: float = 0.01
    ) -> list[dict[str, Any]]:
        """Groups for an Adam-like optimizer.

        Gates have their own rate, no decay (it would pull them towards half open), and an
        epsilon below the tiny gradient of a nearly saturated gate. Vectors (biases, norms) are
        not decayed either. Of a finished pruner: those of the small model, which has no gates.
        """
        gates = [] if self.finished else self.control.gate_parameters()
        known = {id(gate) for gate in (*gates, *self.control.own_parameters)}
        rest = [p for p in self.model.parameters() if id(p) not in known]
        groups = weight_groups(rest, learning_rate, weight_decay)
        if gates:
            rate = self.control.gate_lr
            groups.append({"params": gates, "lr": rate, "weight_decay": 0.0, "eps": 1e-12})
        return groups

    def shrink(self, *optimizers: torch.optim.Optimizer) -> bool:
        """Take components out whose gates are shut for good; steps get cheaper, the model computes
        what it did.

        Between steps, when gradients are cleared; with several workers on all of them after the
        same step. Twenty times over the gated phase is often enough.

        Args:
            optimizers: Made to follow, with the state of what stays.

        Returns:
            Whether any left. Parameters of the model are then others: what holds some of them (a
            data-parallel wrapper, a list to clip) has to be made again.
        """
        self._check_not_finished()
        dead = self.control.dead()
        if not any(closed.any() for closed in dead.values()):
            return False
        scores = self.control.scores()
        # gates may have fallen too far, all together: the budget must find its components again
        needed = project(scores, self.control.costs, self.method.density, self.control.floors)
        keep = components_to_keep(
            {name: scores[name] for name in dead},
            {name: closed & ~needed.keep[name] for name, closed in dead.items()},
            self.control.floors,
            self.control.costs,
        )
        self._drop(keep, optimizers)
        return bool(keep)

    def _drop(
        self, keep: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        swaps: list[Swap] = []
        for name, mask in keep.items():
            layer = self.layers[name]
            assert isinstance(layer, GatedFactors)
            swaps += layer.drop(mask)
            self.present[name] = of_the_start(mask, self.present[name])
        if swaps:
            self.control.follow(swaps)
            for optimizer in optimizers:
                follow(optimizer, swaps)

    def aim(self, density: float, steps: int, reached: float | None = None) -> None:
        """Set out for another density; budget, floors and multiples are those of it from now on.

        A pruner that goes through several densities, from high to low, is made for the highest,
        since that decides how many components it starts with. A copy can finish at each.

        Args:
            density: 0 < density <= 1, at which the next projection will be.
            steps: Gated steps until then, at least 1.
            reached: The density at which the gates are. By default the first of all, from the
                whole start; a higher one than `density`: the gates follow down to it, and do not
                harden; the same one: they harden.

        Raises:
            DensityError: The density is below what the method's floors need.
            LowRankError: The method cannot go on to other densities, or not to this one.
        """
        self._check_not_finished()
        self.control.aim(density, steps, reached)
        self.method = self.control.method
        self._place_budget()
        self._begin_step()

    def _place_budget(self) -> None:
        # before any training: a target that no projection can meet is known already
        floor_units(self.control.costs, self.method.density, self.control.floors)
        for name, layer in self.layers.items():
            layer.dense_from = dense_from(self.control.costs[name], layer.shape)

    def project(self) -> Projection:
        """Which units stay, on the budget of the final target. Changes nothing."""
        self._check_not_finished()
        return self.control.project()

    def finish(self, projection: Projection | None = None) -> nn.Module:
        """Project and compact: the pruned layers leave the model, plain ones take their place.

        The parameters are new ones: build a new optimizer for what follows.
        """
        self._check_not_finished()
        projection = projection or self.project()
        keep = {n: projection.keep[n].to(_device(layer)) for n, layer in self.layers.items()}
        self.model = self.method.compact(self.model, self.layers, keep)
        self._keep = {n: of_the_start(mask, self.present.get(n)) for n, mask in keep.items()}
        self.layers = {}
        return self.model

    def state_dict(self) -> dict[str, Tensor]:
        """Step, multipliers and which components are there, or what was kept; factors, gates and
        masks are in the model's own state."""
        state = {"step_index": torch.tensor(self.step_index)}
        if self.finished:
            return state | {KEEP + name: mask for name, mask in self._keep.items()}
        present = {PRESENT + name: mask for name, mask in self.present.items()}
        return self.control.state_dict() | state | present

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from another pruner's state.

        The model gets the other's structure, without the weights: components that had left leave,
        and if the other was finished, this one is finished too. So the pruner's state comes first,
        then the model's, then the optimizer is made.

        Args:
            state: Of a pruner of the same model, method and moments.

        Raises:
            LowRankError: The state belongs to other layers, or to a time before this pruner was
                finished.
        """
        keep, present = masks_of(state, KEEP), masks_of(state, PRESENT)
        if self.finished:
            same = keep.keys() == self._keep.keys()
            if not same or any(not torch.equal(keep[n], m) for n, m in self._keep.items()):
                raise LowRankError(
                    "the pruner is finished, and the state is not that of its structure: load it "
                    "into a new pruner"
                )
        elif keep:
            check_masks(keep, self._num_units(keep))
            counts = {name: int(mask.sum()) for name, mask in keep.items()}
            self.finish(Projection(keep, realized_density(counts, self.control.costs)))
        elif present:
            check_masks(present, self._num_units(present))
            self._drop({name: mask for name, mask in present.items() if not mask.all()}, ())
        self.control.step_index = int(state["step_index"])
        if not self.finished:
            self._begin_step()
            self.control.load_state_dict(dict(state))

    def _num_units(self, masks: Mapping[str, Tensor]) -> dict[str, int]:
        """What each layer had at the start; only of factorized layers, if only these have masks."""
        units = {name: self.control.costs[name].num_units for name in self.layers}
        # a truncated start has fewer than the matrix
        units |= {name: len(mask) for name, mask in self.present.items()}
        return {n: units[n] for n in masks} if masks.keys() == self.present.keys() else units

    def _check_not_finished(self) -> None:
        if not self.layers:
            raise LowRankError("the pruner is finished: its gates have left the model")

    def _begin_step(self) -> None:
        digest = hashlib.sha256(f"gate-noise:{self.seed}:{self.step_index}".encode()).digest()
        # the CPU generator gives the same stream on every machine, a CUDA one does not
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        self.control.begin_step(generator)


def _device(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device
