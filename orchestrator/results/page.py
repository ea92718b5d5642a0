"""A results page: Markdown and plots of a campaign, from MLflow's records alone."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.parse import quote

from orchestrator.errors import CampaignError
from orchestrator.layout import storage_error
from orchestrator.results.integers import integers
from orchestrator.results.plots import write_plots
from orchestrator.results.read import Results
from orchestrator.results.setting import failed_and_missing, setting
from orchestrator.results.tables import cost, paired, quality
from orchestrator.results.text import Pictures
from orchestrator.results.together import together
from orchestrator.results.training import curves, gates, ranks, tuning
from orchestrator.wording import without_places

NOTES = ("<!-- notes -->", "<!-- /notes -->")
"""What stands between these lines is a person's, and stays."""

SECTIONS = (
    ("Setting", setting),
    ("Quality", quality),
    ("Paired differences", paired),
    ("Cost", cost),
    ("In 8-bit integers", integers),
    ("Tuning", tuning),
    ("From gates to final", gates),
    ("Gates over training", curves),
    ("Ranks", ranks),
    ("Failed and missing", failed_and_missing),
)
"""Title and the function that gives its blocks; without blocks there is no section."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of the command, for the page to repeat."""

    spec: Path
    overrides: Sequence[str]
    task: str | None
    out: Path

    @property
    def run(self) -> str:
        """The command that runs the campaign; where it stores things is left out."""
        elsewhere = ("storage=", "tracking.")
        kept = [each for each in self.overrides if not each.startswith(elsewhere)]
        words = ["lowrank", "run", _near(self.spec)]
        return shlex.join([*words, *(word for each in kept for word in ("--set", _plain(each)))])

    @property
    def results(self) -> str:
        """The command that writes the page."""
        words = shlex.split(self.run)
        words[1] = "results"
        words += ["--task", self.task] if self.task else []
        return shlex.join([*words, "--out", _near(self.out)])


def write_results(tasks: Sequence[Results], asked: Asked, today: date) -> Path:
    """Write the page to `asked.out`, and its plots into the folder of that name beside it; those
    of several tasks into a folder for each.

    Raises:
        CampaignError: The file is there and is not a page of this command.
        StorageError: It cannot be written.
    """
    out = asked.out
    notes = read_notes(out)
    try:
        pictures = [_drawn(task, out, apart=len(tasks) > 1) for task in tasks]
        page = render(tasks, asked, today, notes, pictures)
        temporary = out.with_name(out.name + ".tmp")
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        raise storage_error(out, error) from error
    return out


def _drawn(results: Results, out: Path, apart: bool) -> Pictures:
    """The plots of a task, in a folder of its own if there are several."""
    folder = out.with_suffix("")
    if apart:
        folder /= results.task.name
    drawn = write_plots(results, folder)
    place = quote(folder.relative_to(out.parent).as_posix())
    return {name: f"![{words}]({place}/{name}.png)" for name, words in drawn.items()}


def render(
    tasks: Sequence[Results],
    asked: Asked,
    today: date,
    notes: str,
    pictures: Sequence[Pictures],
) -> str:
    """The page: title, notes, and every section that has something to show.

    Args:
        tasks: What the records say of each. Several get a chapter each, after a table of all.
        asked: The command.
        today: Date of the page.
        notes: The block of a person, with its marks.
        pictures: Of each task, from the name of a plot to its Markdown.
    """
    several = len(tasks) > 1
    name = tasks[0].spec.name if several else tasks[0].task.name
    blocks = [
        f"# {name}: methods compared",
        f"{today}. Written from MLflow's records by\n\n    {asked.results}\n\n"
        f"The campaign was run by\n\n    {asked.run}",
        notes,
    ]
    if several:
        blocks += ["## All tasks", *together(tasks)]
    for results, shown in zip(tasks, pictures, strict=True):
        if several:
            blocks.append(f"## {results.task.name}")
        for title, section in SECTIONS:
            if parts := section(results, shown):
                blocks += [f"##{'#' * several} {title}", *parts]
    return "\n\n".join(blocks) + "\n"


def read_notes(page: Path) -> str:
    """The block of notes of a page that is there, marks included; an empty one of a new page.

    Raises:
        CampaignError: The file has no such block, so it is somebody else's.
    """
    if not page.exists():
        return "\n".join(NOTES)
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CampaignError(f"--out: {page} is there and cannot be read: {error}") from error
    begin, end = map(re.escape, NOTES)
    found = re.search(f"{begin}.*?{end}", text, re.DOTALL)
    if found is None:
        raise CampaignError(
            f"--out: {page} is there without a block {NOTES[0]} ... {NOTES[1]}: it is not a page "
            "of this command, which would replace all of it. Add the block or choose another name"
        )
    return found[0]


def _near(path: Path) -> str:
    """A path from here; of one that lies elsewhere the name alone."""
    inside = os.path.relpath(path)
    return path.name if inside.startswith("..") else inside


def _plain(override: str) -> str:
    return without_places(override)
