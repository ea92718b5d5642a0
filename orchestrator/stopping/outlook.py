"""What a training on its way to its end is compared by: its loss, and how fast it still falls.

A loss in the middle says little where learning rates are searched: a high rate pays when it falls,
at the end, and its trial is behind all others until then. So a trial is compared by where it will
be when its recovery has lasted twice as long, if it goes on as of late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

RECENT = 3
"""The pace is that of the last third of the recovery: with noise in each validation a shorter part
is too uncertain, and a longer one has what the projection cost in it."""


def outlook(losses: Mapping[int, float], begin: int, end: int) -> float | None:
    """The loss that a trial is compared by.

    Args:
        losses: Step -> validation loss since the structure is fixed, smaller is better; infinite if
            it was not finite.
        begin: Step from which on it is fixed.
        end: Last step of the training.

    Returns:
        The last loss, less what it would fall in as many steps again as there were since `begin`,
        or until the end, at the pace of the last third of them; never more than the last loss. None
        with a single loss, of which no pace is known.
    """
    steps = sorted(losses)
    last = losses[steps[-1]]
    if not math.isfinite(last):
        return math.inf
    if len(steps) < 2:
        return None
    earlier = [step for step in steps[:-1] if math.isfinite(losses[step])]
    if not earlier:
        return last
    since = steps[-1] - (steps[-1] - begin) / RECENT
    # at least from the one before
    first = max((step for step in earlier if step <= since), default=earlier[-1])
    pace = (last - losses[first]) / (steps[-1] - first)
    ahead = min(end - steps[-1], steps[-1] - begin)
    return last + min(0.0, pace) * ahead
