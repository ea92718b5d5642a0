"""Errors of the library. Those caused by an argument are also `ValueError`."""

MAX_SHOWN = 300
"""Characters of another's message: it may quote a whole file."""


def first_line(error: BaseException) -> str:
    """Of the message of somebody else's error, for one of ours; its kind, if it has none."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    if first.endswith(":") and more:
        first = f"{first} {more[0].strip()}"
    return first[:MAX_SHOWN]


class LowRankError(Exception):
    """Root of everything that `lowrank` raises on purpose."""


class DensityError(LowRankError, ValueError):
    """A density that cannot be met, or lies outside (0, 1]."""


class SurgeryError(LowRankError, ValueError):
    """Layers that cannot be found or replaced."""


class ExportError(LowRankError):
    """A saved model that is damaged, incomplete or does not fit the model it is loaded into."""
