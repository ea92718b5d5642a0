"""Draws of a search that are stopped before their end, because others are ahead of them.

    judge      who is ahead of whom at a rung: pure
    notes      what was seen and decided, one file per trial
    rungs      both for one task of a campaign
    scheduler  Ray Tune's part: every report of a training comes by here
    signals    how a training hears that it is to stop

A training stops by itself at its next look. Ray Tune's own way ends the process of the trial, with
a nested training in it whose controller and workers know nothing of it and keep their machines.
"""
