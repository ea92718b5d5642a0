"""Errors of the library. Those caused by an argument are also `ValueError`."""


class LowRankError(Exception):
    """Root of everything that `lowrank` raises on purpose."""


class DensityError(LowRankError, ValueError):
    """A density that cannot be met, or lies outside (0, 1]."""


class SurgeryError(LowRankError, ValueError):
    """Layers that cannot be found or replaced."""


class ExportError(LowRankError):
    """A saved model that is damaged, incomplete or does not fit the model it is loaded into."""
