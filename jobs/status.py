"""`lowrank status`: a table of what trains, what waits and what is done."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.disk import usage
from orchestrator.layout import Layout
from orchestrator.progress import clock
from orchestrator.spec_io import load_spec
from orchestrator.status import (
    FAILED,
    FINISHED,
    STOPPED,
    TRAINING,
    WAITING,
    CampaignStatus,
    ModelStatus,
    campaign_status,
)
from orchestrator.tracking import default_tracking_uri
from orchestrator.tracking.reading import RunReader
from orchestrator.wording import number, plural

MOST = 40
"""Models in a table that fits a screen; of more, those that are done are only counted."""
LOOK_EVERY_S = 60.0
"""At the disk."""
STYLES = {TRAINING: "bold", FAILED: "red", STOPPED: "yellow", WAITING: "dim"}


def status(path: Path, overrides: Sequence[str], watch: float | None, every: bool) -> int:
    """Once, or until Ctrl-C or the campaign's end."""
    spec = load_spec(path, overrides)
    layout = Layout.of(spec.storage, spec.name)
    reader = RunReader(spec.tracking.uri or default_tracking_uri(spec.storage), spec.name)

    def look() -> tuple[CampaignStatus, str]:
        now = campaign_status(spec, reader, layout)
        return now, disk.line(now)

    disk = _Disk(layout, spec.retention.num_bytes)
    console = Console()
    if watch is None:
        # a pipe has no width of its own; tables should not wrap there
        wide = console if console.is_terminal else Console(width=160)
        now, used = look()
        wide.print(shown(now, every, used))
        return 0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            now, used = look()
            live.update(shown(now, every, used), refresh=True)
            if now.over:
                return 0
            time.sleep(watch)


class _Disk:
    """Looks at most once a minute: a campaign of a thousand models has a hundred thousand files."""

    def __init__(self, layout: Layout, budget: int | None) -> None:
        self._layout, self._budget = layout, budget
        self._line, self._at = "", -math.inf

    def line(self, status: CampaignStatus) -> str:
        """Empty where the campaign's folder is not seen."""
        if self._layout.root.is_dir() and time.monotonic() - self._at >= LOOK_EVERY_S:
            self._line = usage(self._layout, status.data).in_words(self._budget)
            self._at = time.monotonic()
        return self._line


def shown(status: CampaignStatus, every: bool = False, disk: str = "") -> Group:
    """Who drives it, what is done, what it takes, and the models."""
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for heading in ("", "step", "density", "validation", "trained"):
        table.add_column(heading, justify="left" if not heading else "right")
    models = status.models
    if len(models) > MOST and not every:
        models = [model for model in models if model.state in (TRAINING, FAILED, STOPPED)]
    for model in models:
        table.add_row(*_cells(model), style=STYLES.get(model.state, ""))
    # as Text, because a name with brackets is no markup
    lines = [_headline(status), _counts(status), *([disk] if disk else [])]
    return Group(*map(Text, lines), table)


def _headline(status: CampaignStatus) -> str:
    if status.driver:
        return f"campaign {status.name}: driven by process {status.driver}"
    if status.over:
        return f"campaign {status.name}: over (lowrank report)"
    return f"campaign {status.name}: no process drives it here; lowrank run goes on with it"


def _counts(status: CampaignStatus) -> str:
    parts = [f"{status.count(FINISHED)} of {plural(status.num_models, 'model')} finished"]
    for state in (TRAINING, FAILED, STOPPED):
        if number_of := status.count(state):
            parts.append(f"{number_of} {state}")
    if status.driver and status.seconds_left:
        parts.append(f"about {clock(status.seconds_left)} of training left")
    return ", ".join(parts)


def _cells(model: ModelStatus) -> list[Text]:
    step = f"{model.step}/{model.num_steps}" if model.state in (TRAINING, STOPPED) else ""
    state = f"{model.state}: {model.reason}" if model.reason else model.state
    return [
        Text(model.name),
        Text(state, overflow="ellipsis", no_wrap=True),
        Text(step),
        Text("" if model.density is None else f"{model.density:.3f}"),
        Text("" if model.validation is None else number(model.validation)),
        Text("" if model.seconds is None else clock(model.seconds)),
    ]
