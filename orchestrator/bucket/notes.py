"""Notes of workers that hung (`watchdog`), from the machines on which they were written.

A note is written by a process that ends in the same moment, and sends nothing. So the trial asks
every node for the notes of its training before it begins another attempt.
"""

from __future__ import annotations

import logging

from orchestrator.bucket.places import opened
from orchestrator.errors import StorageError

logger = logging.getLogger(__name__)

ANSWER_S = 60.0
"""How long nodes are waited for: a process for the question starts in seconds."""


def send_notes(place: str) -> int:
    """Move the notes of a training from this machine to the bucket; returns how many."""
    mirror, folder = opened(place)
    notes = [note for note in sorted(folder.glob("*.txt")) if note.stat().st_size]
    for note in notes:
        mirror.push_file(note)
        note.unlink()
    return len(notes)


def collect_notes(place: str) -> None:
    """Have every node of the cluster send its notes, and bring them here.

    Args:
        place: Folder of a training's notes; nothing is done if it is no bucket's.
    """
    mirror, folder = opened(place)
    if not mirror.is_bucket:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(send_notes).options
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    asked = [
        ask(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(id, soft=False)).remote(
            place
        )
        for id in nodes
    ]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)
    for answer in answered:
        try:
            ray.get(answer)
        except ray.exceptions.RayError as error:
            logger.warning("a node has not sent its notes: %s", error)
    try:
        mirror.fetch_files(folder)
    except StorageError as error:
        logger.warning("notes of workers that hung are not known: %s", error)
