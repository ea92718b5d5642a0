"""Ways to choose what stays of a model; all of one call form, for `lowrank.Pruner`."""

from lowrank.methods.adaptive import Adaptive
from lowrank.methods.base import Control, Method
from lowrank.methods.fixed_rank import FixedRank
from lowrank.methods.flop_l0 import FlopL0, NeuronL0
from lowrank.methods.heads_ffn import HeadsFfn
from lowrank.methods.magnitude_control import Agp, FlopAgp
from lowrank.methods.start import Start

__all__ = [
    "Adaptive",
    "Agp",
    "Control",
    "FixedRank",
    "FlopAgp",
    "FlopL0",
    "HeadsFfn",
    "Method",
    "NeuronL0",
    "Start",
]
