"""Factorized low-rank pruning for any torch module.

    pruner = lowrank.Pruner(model, lowrank.FlopL0(density=0.3))

See `lowrank.pruner` for the loop, docs/method.md for the method.
"""

from lowrank.currency import Currency, Macs
from lowrank.density import LayerShape, expected_density, realized_density
from lowrank.embedding import LowRankEmbedding, LowRankHead
from lowrank.errors import DensityError, ExportError, LowRankError, SurgeryError
from lowrank.export import load, save
from lowrank.factorize import Factorization, factorize, factorize_rows
from lowrank.gate import GateConfig, HardConcreteGate
from lowrank.gated_embedding import GatedEmbedding
from lowrank.lagrangian import AugmentedLagrangian
from lowrank.linear import GatedLinear, LowRankLinear
from lowrank.methods import Adaptive, Agp, FixedRank, FlopAgp, FlopL0, Method, NeuronL0, Start
from lowrank.moments import InputMoments, collect_moments
from lowrank.projection import Projection, project
from lowrank.pruner import Pruner
from lowrank.sliced import SlicedLinear
from lowrank.surgery import find_layers, replace_layers
from lowrank.threshold import ThresholdGate

__all__ = [
    "Adaptive",
    "Agp",
    "AugmentedLagrangian",
    "Currency",
    "DensityError",
    "ExportError",
    "Factorization",
    "FixedRank",
    "FlopAgp",
    "FlopL0",
    "GateConfig",
    "GatedEmbedding",
    "GatedLinear",
    "HardConcreteGate",
    "InputMoments",
    "LayerShape",
    "LowRankEmbedding",
    "LowRankError",
    "LowRankHead",
    "LowRankLinear",
    "Macs",
    "Method",
    "NeuronL0",
    "Projection",
    "Pruner",
    "SlicedLinear",
    "Start",
    "SurgeryError",
    "ThresholdGate",
    "collect_moments",
    "expected_density",
    "factorize",
    "factorize_rows",
    "find_layers",
    "load",
    "project",
    "realized_density",
    "replace_layers",
    "save",
]
