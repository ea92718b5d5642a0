"""The Ray session of a campaign: a local one by default, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import CampaignError, ClusterError
from orchestrator.leftovers import SETTLED_S, free, remember, remembered
from orchestrator.room import DRIVER, LOCAL_DRIVERS, check_fits, having
from orchestrator.spec import Resources
from orchestrator.spec_labels import matches

logger = logging.getLogger(__name__)

CAPACITY_ENV = "LOWRANK_CLUSTER_CAPACITY"
"""What a cluster's autoscaler may grow to, as JSON such as `{"CPU": 64, "GPU": 8}`. Ray tells only
what is there now, and trials that wait for nodes are what makes an autoscaler add some."""

OBJECT_STORE_BYTES = 100 * 2**20
"""Nothing large goes through the object store; Ray's default would take 30 % of the memory."""

LOOK_EVERY_S = 2.0
"""Between two looks for machines that are waited for."""

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
            yield _available()
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
        yield _available()
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


def _available(labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """All that the cluster has; with labels, of what workers take that of the nodes which have
    them."""
    import ray

    there = dict(ray.cluster_resources())
    if labels:
        nodes = [node["Resources"] for node in _nodes(labels)]
        there |= {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return capacity(there) if os.environ.get("RAY_ADDRESS") else there


def _nodes(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """That are alive and have the labels."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"]]
    return [node for node in alive if matches(labels, node.get("Labels") or {})]


def capacity(there: dict[str, Any]) -> dict[str, Any]:
    """What is there, or may be there once the autoscaler has added nodes.

    Raises:
        CampaignError: LOWRANK_CLUSTER_CAPACITY is not what it must be.
    """
    text = os.environ.get(CAPACITY_ENV)
    if not text:
        return there
    rule = f'{CAPACITY_ENV} must be like {{"CPU": 64, "GPU": 8}}, got {text[:200]}'
    try:
        most = json.loads(text)
    except ValueError:
        raise CampaignError(rule) from None
    if not isinstance(most, dict) or not all(_is_amount(amount) for amount in most.values()):
        raise CampaignError(rule)
    return there | {name: max(amount, there.get(name, 0)) for name, amount in most.items()}


def _is_amount(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < math.inf


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


def wait_to_fit(resources: Resources, task: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Wait for machines if no trial fits the cluster that RAY_ADDRESS names: they come and go.

    Returns:
        The cluster's resources now.

    Raises:
        CampaignError: As by `check_fits`, after `wait_minutes`; on this machine alone at once, for
            nothing will come.
    """
    deadline, told = time.monotonic() + 60 * resources.wait_minutes, False
    while True:
        try:
            available = _available(resources.labels)
            check_fits(resources, available, task)
            return available
        except CampaignError as error:
            if not os.environ.get("RAY_ADDRESS") or time.monotonic() >= deadline:
                raise
            if not told:
                told = True
                say(f"{error}; machines are waited for, {resources.wait_minutes:g} minutes at most")
        time.sleep(LOOK_EVERY_S)


def run_alone(
    function: Callable[..., Any], *args: Any, labels: Mapping[str, str] | None = None
) -> Any:
    """Run a function with a whole node to itself: every CPU, and a GPU where nodes have one.

    Args:
        function: Runs there.
        args: Its arguments.
        labels: Of the node.
    """
    import ray

    nodes = [node["Resources"] for node in _nodes(labels or {})]
    with_cpu = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not with_cpu:
        raise CampaignError(
            f"no node of the cluster{having(labels or {})} has a CPU to measure speed on; keep at "
            "least one worker (minReplicas), and the same command goes on"
        )
    best = max(with_cpu, key=lambda node: (node.get("GPU", 0), node["CPU"]))
    remote = ray.remote(function).options(
        num_cpus=best["CPU"],
        num_gpus=1 if best.get("GPU", 0) >= 1 else 0,
        max_retries=1,
        label_selector=dict(labels or {}),
    )
    return ray.get(remote.remote(*args))
