"""The harness of `lowrank bench`: what a compressed model costs to run, beside its dense one.

`subjects` says which models, `forms` in which ways they can be run, `phases` on what they are run;
`cells` times, `layers` and `operators` say where the time goes, `resources` asks a fresh process
for memory and load time; `harness` puts these into one result, `results` keeps and compares such,
`tables` makes them readable. The clock is that of `lowrank.timing`. See docs/benchmarking.md.
"""
