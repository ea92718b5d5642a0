"""The front of points in a plane, built up one by one."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right


class Staircase:
    """Points (x, y) of which none is as small as another in both.

    x rises and y falls along it; between two sentinels, so that every place has neighbours.
    """

    def __init__(self) -> None:
        self._xs, self._ys = [-math.inf, math.inf], [math.inf, -math.inf]

    def add(self, x: float, y: float) -> None:
        """Take a point in, and drop those that it makes superfluous."""
        if self.covers(x, y):
            return
        first = last = bisect_left(self._xs, x, lo=1, hi=len(self._xs) - 1)
        while last < len(self._xs) - 1 and self._ys[last] >= y:
            last += 1
        self._xs[first:last], self._ys[first:last] = [x], [y]

    def covers(self, x: float, y: float) -> bool:
        """Whether a point of it is no larger in both."""
        last = bisect_right(self._xs, x, lo=1, hi=len(self._xs) - 1) - 1
        # the first sentinel is no point, even for a y that is infinite
        return last > 0 and self._ys[last] <= y
