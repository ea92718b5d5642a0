"""Pareto fronts of compressed models: who is on them, what they cover, what to choose from them.

`objectives` turns records into losses; `dominance`, `hypervolume` and `knee` work on plain arrays
of losses, so that they can be tested against brute force.
"""
