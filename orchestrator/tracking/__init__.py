"""MLflow's runs: the only package that writes them, and that reads them back.

    store     a campaign's experiment: which runs there are
    writer    one run, from any process
    journal   the curve of a training, on disk first
    patience  asking again while a store is away
    reading   what a results page is written from
    earlier_runs  what a search takes from other campaigns

Explicit client, explicit ids: no fluent run is left active anywhere, and every writer can be in
another process. Whoever opens the store first is the campaign's driver, before any worker starts,
because a fresh SQLite store does not survive being created by several processes.
"""

from orchestrator.tracking.patience import TrackingAway
from orchestrator.tracking.store import Tracking, default_tracking_uri, experiment_id
from orchestrator.tracking.writer import RunWriter

__all__ = ["RunWriter", "Tracking", "TrackingAway", "default_tracking_uri", "experiment_id"]
