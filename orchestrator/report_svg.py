"""Figures without pyplot, as inline SVG or PNG: the style and the two ways out.

Text stays text in the SVG, so the page's own font applies, and marks carry tooltips. Colours are
those of Okabe and Ito (2008), which people with the common colour blindnesses tell apart.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#8C564B", "#7F7F00")
CHOSEN, DENSE, MUTED, INK = "#D55E00", "#3d4852", "#b8c0c8", "#1f2933"
MAX_CURVES = len(PALETTE)

_STYLE = {
    "font.size": 9,
    "font.family": ["DejaVu Sans"],
    "text.parse_math": False,  # names come from people: a `$` is a `$`
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "grid.color": "#e7eaee",
    "grid.linewidth": 0.7,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
}

Tips = dict[str, str]
"""From the id of a mark to the text that shows when the pointer rests on it."""
Draw = Callable[[Figure], Tips]


def as_svg(draw: Draw, *, salt: str, label: str, size: tuple[float, float] = (5.6, 3.9)) -> str:
    """Run a drawing function and return an `<svg>` element that any page may hold.

    Args:
        draw: fills a figure and returns its tooltips; marks with one keep their id as `data-mark`,
            for the page's script.
        salt: unique within the page; ids start with it.
        label: what a screen reader says.
        size: inches; the page scales the figure to its column.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        tips = draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _embeddable(buffer.getvalue(), tips, salt, label)


def as_png(draw: Draw, path: Path, size: tuple[float, float] = (7.0, 4.6)) -> Path:
    """Run a drawing function and save the figure at 160 dots per inch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        draw(figure)
        figure.savefig(path, format="png", dpi=160)
    return path


def without_yellow() -> Colormap:
    """Viridis up to its bright end, which a white page swallows."""
    viridis = matplotlib.colormaps["viridis"]
    return LinearSegmentedColormap.from_list("dark-viridis", viridis([i / 20 for i in range(18)]))


def _embeddable(svg: str, tips: Tips, salt: str, label: str) -> str:
    """Strip what only a file of its own needs, and make ids unique within a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # in one pass: a plot of a thousand trials has a thousand marks and megabytes of text
    svg = re.sub(r'<g id="([^"]*)">', lambda m: _with_tip(m, tips), svg)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{salt}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{salt}-", svg)
    opening, rest = svg.split(">", 1)
    # without a fixed size, the page scales the figure to its column
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)
    named = f'<svg role="img" aria-label="{html.escape(label)}"'
    return opening.replace("<svg", named, 1) + ">" + rest


def _with_tip(group: re.Match[str], tips: Tips) -> str:
    """Its own id would be no longer unique within the page."""
    if group[1] not in tips:
        return group[0]
    return f'<g data-mark="{group[1]}"><title>{html.escape(tips[group[1]])}</title>'
