"""Width pruning of transformer blocks: whole attention heads and feed-forward neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lowrank.blocks import UnitShape, find_units
from lowrank.density import Cost, LayerShape
from lowrank.gate import HardConcreteGate
from lowrank.methods.base import check_fraction
from lowrank.methods.flop_l0 import HardConcreteMethod
from lowrank.narrow import GatedUnits, set_head_counts
from lowrank.prunable import Prunable
from lowrank.pruned import PrunedLayer
from lowrank.surgery import replace_layers


@dataclass(frozen=True, kw_only=True)
class HeadsFfn(HardConcreteMethod):
    """Head and feed-forward pruning with hard concrete gates under one Lagrangian: the fine-grained
    units of CoFi (Xia, Zhong, Chen 2022, arXiv 2204.00408) without its masks of layers and hidden
    dimensions. Heads as units of pruning: Michel, Levy, Neubig 2019 (arXiv 1905.10650).

    Layers are matched as for any method, and the density is a fraction of the same matrices; they
    must be whole blocks of a known architecture (`lowrank.blocks`).
    """

    floor_fraction: float = 0.0
    """Least number of a block's heads and of its neurons, as a fraction of what a uniform choice
    would leave of them, rounded down; `min_rank` of both in any case."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("floor_fraction", self.floor_fraction)

    def check(self, model: nn.Module, matched: Mapping[str, nn.Module]) -> None:
        find_units(model, matched)

    def layers(
        self,
        model: nn.Module,
        matched: Mapping[str, Prunable],
    ) -> dict[str, PrunedLayer]:
        dense = {name: each.modules[0] for name, each in matched.items()}
        return {
            name: GatedUnits(
                dense[name],
                HardConcreteGate(group.shape.cost_of_units.num_units, self.gate),
                group.shape,
                group.producers,
                group.stacked,
            )
            for name, group in find_units(model, dense).items()
        }

    def compact(
        self, model: nn.Module, layers: Mapping[str, PrunedLayer], keep: Mapping[str, Tensor]
    ) -> nn.Module:
        small: dict[int, nn.Module] = {}
        for name, layer in layers.items():
            assert isinstance(layer, GatedUnits)
            small[id(layer)] = layer.compact(keep[name])
            for producer in map(model.get_submodule, layer.producers):
                small[id(producer)] = layer.compact_producer(producer, keep[name])
        model = replace_layers(model, lambda _, module: small.get(id(module)))
        set_head_counts(model)
        return model

    def cost(self, shape: LayerShape) -> Cost:
        assert isinstance(shape, UnitShape)
        return shape.cost_of_units

    def floors(self, shapes: Mapping[str, LayerShape]) -> dict[str, int]:
        uniform = {name: self.density * self.cost(s).num_units for name, s in shapes.items()}
        fraction = self.floor_fraction
        return {n: max(self.min_rank, math.floor(fraction * u)) for n, u in uniform.items()}
