"""What a campaign will cost, before it starts: hours, memory, bytes, and whether it fits.

`work` counts what a spec asks for; `probe` trains a few real steps of it on this machine and leaves
a `profile`, which another machine may read; `hours`, `disk` and `fit` make a plan of the two;
`actual` holds a finished campaign against its plan.
"""
