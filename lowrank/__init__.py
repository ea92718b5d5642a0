"""Factorized low-rank pruning for any torch module.

    pruner = lowrank.Pruner(model, lowrank.FlopL0(density=0.3))

See `lowrank.pruner` for the loop, docs/method.md for the method.
"""

from lowrank.density import LayerShape, expected_density, realized_density
from lowrank.errors import DensityError, ExportError, LowRankError, SurgeryError
from lowrank.export import load, save
from lowrank.factorize import Factorization, factorize
from lowrank.gate import GateConfig, HardConcreteGate
from lowrank.lagrangian import AugmentedLagrangian
from lowrank.linear import GatedLinear, LowRankLinear
from lowrank.projection import Projection, project
from lowrank.pruner import FlopL0, Pruner
from lowrank.surgery import find_layers, replace_layers

__all__ = [
    "AugmentedLagrangian",
    "DensityError",
    "ExportError",
    "Factorization",
    "FlopL0",
    "GateConfig",
    "GatedLinear",
    "HardConcreteGate",
    "LayerShape",
    "LowRankError",
    "LowRankLinear",
    "Projection",
    "Pruner",
    "SurgeryError",
    "expected_density",
    "factorize",
    "find_layers",
    "load",
    "project",
    "realized_density",
    "replace_layers",
    "save",
]
