"""Tell Ray that this node is about to be taken away, and wait until it is empty.

    python -m orchestrator.drain --seconds 100

A pod runs it before it ends (`preStop` in jobs/cluster/*.yaml). Kubernetes gives its notice to
pods, and Ray does not hear of it: without this a spot node simply dies. Ray passes the notice on to
the trainings that have workers here; they write their state and move to other nodes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

REASON = "DRAIN_NODE_REASON_PREEMPTION"
LOOK_EVERY_S = 2.0


def main() -> int:
    """Returns 0 also where nothing can be told: the pod ends either way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, required=True, help="Until the node is gone.")
    parser.add_argument("--node-ip", help="By default this machine's.")
    options = parser.parse_args()
    address = os.environ.get("RAY_ADDRESS", "auto")
    deadline = time.monotonic() + options.seconds
    node = _this_node(address, options.node_ip)
    if node is None:
        print("no node of the cluster is here", file=sys.stderr)
        return 0
    subprocess.run(notice(address, node, options.seconds), check=False)
    while time.monotonic() < deadline and _this_node(address, options.node_ip) == node:
        time.sleep(LOOK_EVERY_S)
    return 0


def notice(address: str, node: str, seconds: int) -> list[str]:
    """The command that tells Ray that a node will be gone.

    Args:
        address: Of the cluster.
        node: The node's id.
        seconds: Until then.
    """
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address),
        *("--node-id", node, "--reason", REASON, "--reason-message", "the machine is taken away"),
        *("--deadline-remaining-seconds", str(seconds)),
    ]


def _this_node(address: str, ip: str | None) -> str | None:
    """Id of the living node at this address; None if there is none, or the head is away."""
    import ray
    from ray.util.state import list_nodes

    try:
        nodes = list_nodes(
            address, filters=[("node_ip", "=", ip or ray.util.get_node_ip_address())]
        )
    except Exception as error:  # whatever keeps the head from answering, this node goes
        print(f"the cluster does not answer: {error}", file=sys.stderr)
        return None
    return next((node.node_id for node in nodes if node.state == "ALIVE"), None)


if __name__ == "__main__":
    sys.exit(main())
