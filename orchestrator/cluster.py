"""The Ray session of a campaign: a local one by default, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import ClusterError
from orchestrator.leftovers import SETTLED_S, free, remember, remembered
from orchestrator.machines import available
from orchestrator.room import DRIVER, LOCAL_DRIVERS

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100 * 2**20
"""Nothing large goes through the object store; Ray's default would take 30 % of the memory."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # `uv run` would otherwise ship the working directory to every worker
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # results are polled this often; at Ray's 2 s every report of a short trial waits for it
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    # Ctrl-C is ours: it ends the campaign, not only the search of one task
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # a trial is several small processes that use no CPU of their own; Ray warns of each batch
    "RAY_worker_maximum_startup_concurrency": "16",
}


def set_environment() -> None:
    """Before ray, transformers or mlflow are imported; what the person set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def ray_session(note: Path | None = None) -> Iterator[dict[str, Any]]:
    """Start or join Ray; yields the cluster's resources, with those that it may grow to.

    Without RAY_ADDRESS a fresh local instance is started, whatever else runs on this machine,
    with the dashboard's server process: Train's clean-up of a stopped trial asks it.

    Args:
        note: Where the session's job on a cluster is written down, so that what it leaves taken is
            freed by the next one if this process dies (`leftovers`).
    """
    set_environment()
    address = os.environ.get("RAY_ADDRESS")
    _connect(address)
    import ray

    if address is None:
        try:
            yield available()
        finally:
            ray.shutdown()
        return
    job = ray.get_runtime_context().get_job_id()
    if note is not None:
        head = _head()
        if (earlier := remembered(note, head)) is not None:
            _free(earlier, 0.0)
        remember(note, job, head)
    try:
        yield available()
    finally:
        ray.shutdown()
        if _free_as_another(job, address) and note is not None:
            note.unlink(missing_ok=True)


def _connect(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    on_terminate = signal.getsignal(signal.SIGTERM)
    if address is not None:
        ray.init(address=address, runtime_env={"env_vars": _for_workers(address)}, **quiet)
    else:
        with _address_for_workers(), _start_in_words():
            ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),
                resources={DRIVER: LOCAL_DRIVERS},
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=True,
                **quiet,
            )
    if threading.current_thread() is threading.main_thread():
        # Ray takes the signal for itself and exits at once; a campaign has runs to close
        signal.signal(signal.SIGTERM, on_terminate)


@contextmanager
def _start_in_words() -> Iterator[None]:
    """Ray's processes may not come up: the machine is too busy, its temporary folder is full."""
    try:
        yield
    except Exception as error:  # of many kinds, bare ones among them
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines or [type(error).__name__])[0][:300]
        raise ClusterError(
            f"Ray did not start on this machine: {reason}; nothing is lost, the same command goes "
            "on once there is time and room for it (RAY_TMPDIR names another temporary folder)"
        ) from error


def _head() -> str:
    import ray

    nodes = (node for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    return next((str(node["NodeID"]) for node in nodes), "")


def _free_as_another(job: str, address: str) -> bool:
    """What a job that is over holds can be freed by another job alone; whether that was done."""
    import ray

    try:
        _connect(address)
    except (ConnectionError, RuntimeError) as error:
        logger.warning("what job %s left taken on the cluster is not known: %s", job, error)
        return False
    try:
        return _free(job, SETTLED_S)
    finally:
        ray.shutdown()


def _free(job: str, settled_s: float) -> bool:
    """Whether the cluster told; one that does not keeps nobody."""
    from ray.util.state.exception import RayStateApiException

    try:
        if groups := free(job, settled_s):
            logger.info("%d placement groups of job %s were freed", groups, job)
    except (RayStateApiException, ConnectionError) as error:
        logger.warning("what job %s left taken on the cluster is not known: %s", job, error)
        return False
    return True


def _for_workers(address: str) -> dict[str, str]:
    """Environment of the processes on a cluster: as here, what the person set included."""
    variables = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    # see _address_for_workers; `auto` and ray:// are no addresses there
    is_plain = ":" in address and "://" not in address
    return variables | ({"RAY_ADDRESS": address} if is_plain else {})


@contextmanager
def _address_for_workers() -> Iterator[None]:
    """Ray's processes inherit the address of the instance that is started in this block.

    What frees the machines of a killed Train controller looks for its Ray by itself, and gives up
    where several run on one machine: the next training would wait for ever.
    """
    from ray.util import get_node_ip_address

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    address = f"{get_node_ip_address()}:{port}"
    wanted = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": address}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
