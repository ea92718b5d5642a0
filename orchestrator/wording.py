"""How figures are written for people: one place, so that sentences, tables and plots agree."""

from __future__ import annotations

import getpass
import math
import re
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MISSING = "n/a"
LONGEST, LONGEST_PATH, MOST = 60, 300, 20
"""Characters of a foreign text and of a path, and names of a foreign list, that fit into a message
which is read."""

_PART = r"[^\s/'\"`,;:()\[\]{}<>|]+"
_PATH = re.compile(rf"(?<![\w.:/~…-])(?:\w[\w+.]*:/)?~?/+(?:{_PART}/)*({_PART})")
_ADDRESS = re.compile(
    r"https?://[^\s'\"]+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|(?<![\w/])[\w.+-]+@[\w.-]+"
)


def number(value: float) -> str:
    """Four significant digits: `2.134`, `0.9243`, `24.53`; thousands are grouped."""
    if not math.isfinite(value):
        return MISSING if math.isnan(value) else str(value)
    if abs(value) >= 999.95:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:#.4g}".rstrip(".")
    return f"{value:.2e}"


def short(value: float | str) -> str:
    """A setting as a name needs it: `0.1`, `0.0316`."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(fraction: float) -> str:
    """`0.0163` is `1.6%`; below one percent two decimals stay, so `0.0004` is `0.04%`."""
    if not math.isfinite(fraction):
        return MISSING if math.isnan(fraction) else f"{fraction}%"
    value = 100 * fraction
    return f"{value:.2f}%" if 0 < abs(value) < 0.995 else f"{value:.1f}%"


def probability_in_words(probability: float | None) -> str:
    """Whole percents, as a thousand draws tell no more; certainty is not claimed of draws."""
    if probability is None:
        return ""
    if 0 < probability < 0.005:
        return "<1%"
    if 0.995 < probability < 1:
        return ">99%"
    return f"{100 * probability:.0f}%"


def count(value: float, unit: str = "") -> str:
    """Three significant digits with a decimal prefix: `835 k`, `12.3 M`, `3.20 MB`."""
    for scale, prefix in ((1e9, "G" if unit else "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def ratio(value: float) -> str:
    """A speed-up: `1.43x`."""
    return MISSING if math.isnan(value) else f"{value:.2f}x"


def milliseconds(value: float) -> str:
    """Three significant digits: `53.2 ms`."""
    return MISSING if math.isnan(value) else f"{three_digits(value)} ms"


def three_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def half_spread(interquartile_range: float) -> str:
    """What stands behind `±`, to the two digits that such a spread deserves."""
    value = interquartile_range / 2
    return f"{value:.0f}" if value >= 10 else f"{value:.1g}" if value < 0.1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """The two largest units: `2 h 13 min`, `4 min 12 s`, `3.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def against_dense(drop: float) -> str:
    """`Metric.drop` in words: `1.6% worse`."""
    if math.isnan(drop):
        return "not comparable"
    if drop == 0:
        return "equal"
    return f"{percent(abs(drop))} {'worse' if drop > 0 else 'better'}"


def metric_name(name: str) -> str:
    """`bits_per_character` is `bits per character`."""
    return name.replace("_", " ")


def plural(number_of: int, noun: str) -> str:
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"


def stopped_early(stops: Iterable[tuple[float, int]]) -> str:
    """`3 stopped early (2 at rung 0.4, 1 at rung 0.6), 1,200 steps saved`.

    Args:
        stops: Of each trial its rung, and the steps that it was spared.
    """
    stops = list(stops)
    counts = Counter(rung for rung, _ in stops)
    rungs = ", ".join(f"{counts[rung]} at rung {rung:g}" for rung in sorted(counts))
    return f"{len(stops)} stopped early ({rungs}), {sum(s for _, s in stops):,} steps saved"


def settings(config: Mapping[str, Any], fields: Iterable[str]) -> str:
    """`density 0.3, penalty_lr 0.1`: those of the fields that have a value."""
    known = [field for field in fields if config.get(field) is not None]
    return ", ".join(f"{field} {short(config[field])}" for field in known)


def cut(text: str, longest: int = LONGEST) -> str:
    """A foreign text, short enough for a message."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def listed(names: Sequence[str]) -> str:
    """Foreign names in a message: the first ones, and nothing in them that a terminal obeys."""
    shown = [cut(name) if name.isprintable() else repr(cut(name)) for name in names[:MOST]]
    more = [f"and {len(names) - MOST} more"] if len(names) > MOST else []
    return ", ".join(shown + more)


def facts(values: Mapping[str, Any]) -> str:
    """A mapping in words, `threads 2, dtype float32`, inner ones in brackets, without blanks."""
    parts = []
    for key, value in values.items():
        if value is None or value in ("", [], {}):
            continue
        text = f"({facts(value)})" if isinstance(value, Mapping) else _fact(value)
        parts.append(f"{metric_name(str(key))} {text}")
    return ", ".join(parts)


def _fact(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_fact(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return short(value)


def without_places(text: str) -> str:
    """A text for the public: of an absolute path or URI the last part, no addresses, no names.

    `/home/ada/data/train.txt` is `…/train.txt`. Hidden by name are this machine and its user,
    whom messages of the operating system may name.
    """
    text = _PATH.sub(r"…/\1", _ADDRESS.sub("…", text))
    for name in {socket.gethostname(), _user()} - {"", "root", "localhost"}:
        text = re.sub(rf"\b{re.escape(name)}\b", "…", text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return ""
