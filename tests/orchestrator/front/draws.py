"""Loss values that hypothesis draws: small integers, so that ties and duplicates occur."""

from __future__ import annotations

import math

from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

small = st.integers(0, 4).map(float)
extended = small | st.sampled_from([math.inf, -math.inf, math.nan, -0.0])


def losses(columns: tuple[int, int], elements: st.SearchStrategy[float]) -> st.SearchStrategy:
    shapes = st.tuples(st.integers(0, 12), st.integers(*columns))
    return shapes.flatmap(lambda shape: arrays(float, shape, elements=elements))
