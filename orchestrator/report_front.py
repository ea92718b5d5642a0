"""How sure a task's front is: settings with their intervals, and what the training bought."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from orchestrator.campaign_records import TaskResult
from orchestrator.front.figures import AcrossTasks, Interval, NoisyFront, SettingFigures
from orchestrator.naming import TrialNames
from orchestrator.records import ModelRecord
from orchestrator.report_plots import dense_line, quality_label
from orchestrator.report_svg import CHOSEN, MUTED, PALETTE, Tips, as_svg, without_yellow
from orchestrator.wording import (
    count,
    duration,
    metric_name,
    number,
    percent,
    plural,
    probability_in_words,
    ratio,
)

LEAST = 0.005
"""Settings less probable than this are not listed: they would read 0%."""
MOST = 40
"""Listed settings; the probable ones come first."""


def front_view(task: TaskResult, front: NoisyFront | None, salt: str) -> dict[str, Any] | None:
    """The block of the report; None without a front."""
    if front is None:
        return None
    names = TrialNames.of(task.trials)
    listed = [each for each in front.settings if each.probability >= LEAST]
    by_key = {trial.key: trial for trial in task.trials}
    draw = partial(draw_noisy_front, task=task, front=front)
    over = partial(draw_volumes, front=front)
    return {
        "rows": [_row(each, by_key[each.keys[0]], task, names) for each in listed[:MOST]],
        "left_out": len(front.settings) - len(listed[:MOST]),
        "noise": noise_in_words(front, task),
        "objectives": objectives_in_words(front),
        "reference": reference_in_words(front),
        "volume": interval_in_words(front.volumes[-1].volume, percent),
        "draws": front.draws,
        "figure": as_svg(draw, salt=f"{salt}-sure", label=f"Front of {task.task} with intervals"),
        "volumes": as_svg(over, salt=f"{salt}-volume", label=f"Hypervolume of {task.task}"),
    }


def across_view(across: Sequence[AcrossTasks]) -> list[dict[str, Any]]:
    """Rows of the table over all tasks, densities as groups."""
    return [
        {
            "name": each.name,
            "density": each.density,
            "drops": {task: percent(drop) for task, drop in each.drops.items()},
            "regret": f"{100 * each.worst_regret:.1f} points",
            "worst": each.worst_task,
            "rank": f"{each.average_rank:.2f}",
        }
        for each in across
    ]


def _row(
    each: SettingFigures, trial: ModelRecord, task: TaskResult, names: TrialNames
) -> dict[str, Any]:
    return {
        "name": names.full_setting(trial),
        "chosen": task.choice.key in each.keys,
        "seeds": len(each.keys),
        "quality": interval_in_words(each.quality, number),
        "test": "" if each.test is None else interval_in_words(each.test, number),
        "parameters": interval_in_words(each.parameters, count),
        "speed": "" if each.speedup is None else interval_in_words(each.speedup, ratio),
        "probability": probability_in_words(each.probability),
    }


# --------------------------------------------------------------------------- words


def interval_in_words(interval: Interval, write: Callable[[float], str]) -> str:
    """`2.134 (2.101 to 2.167)`; an exact figure alone, and one of unknown noise too."""
    text = write(interval.value)
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return text
    return f"{text} ({write(interval.low)} to {write(interval.high)})"


def noise_in_words(front: NoisyFront, task: TaskResult) -> str:
    """What is known of the noise of quality."""
    name = metric_name(task.dense.metric.name)
    if front.seed_noise is None:
        return (
            "No setting was repeated under another seed, so nothing is known of the noise of "
            "training, and qualities count as exact (search.repeats, search.finalists)."
        )
    return (
        f"One seed more or less moves {name} by {number(front.seed_noise)} (standard deviation, "
        f"{plural(front.degrees_of_freedom, 'degree')} of freedom)."
    )


def objectives_in_words(front: NoisyFront) -> str:
    """`quality drop, parameters and latency at batch 32`."""
    words = [metric_name(name) for name in front.objectives]
    if "latency" in words:
        words[-1] += f" at batch {front.batch}"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def reference_in_words(front: NoisyFront) -> str:
    """`quality drop 10.0%, parameters 100.0%`, of dense."""
    return ", ".join(f"{metric_name(k)} {percent(v)}" for k, v in front.reference.items())


# --------------------------------------------------------------------------- figures


def draw_noisy_front(figure: Figure, task: TaskResult, front: NoisyFront) -> Tips:
    """Quality against size, a mark per setting, darker the surer; bars are the intervals."""
    axes, tips, names = figure.add_subplot(), dict[str, str](), TrialNames.of(task.trials)
    by_key = {trial.key: trial for trial in task.trials}
    listed = [each for each in front.settings if each.probability >= LEAST]
    others = [each for each in front.settings if each.probability < LEAST]
    colours = without_yellow().reversed()
    for index, each in enumerate([*others, *reversed(listed)]):
        likely = each.probability >= LEAST
        colour = colours(each.probability) if likely else MUTED
        x, y = each.parameters.value, each.quality.value
        axes.errorbar(
            x, y, yerr=_reach(each.quality), xerr=_reach(each.parameters), fmt="o",
            ms=7 if likely else 4, color=colour, mec=CHOSEN if task.choice.key in each.keys
            else "white", mew=1.6 if task.choice.key in each.keys else 0.6, capsize=2.5,
            elinewidth=1.0, zorder=4 if likely else 3,
        )  # fmt: skip
        mark = f"sure-{index}"
        axes.plot(x, y, "o", ms=11, color="none", mec="none", gid=mark, zorder=5)
        tips[mark] = (
            f"{names.full_setting(by_key[each.keys[0]])}: on the front in "
            f"{probability_in_words(each.probability)} of the draws; "
            f"{interval_in_words(each.quality, number)}, {plural(len(each.keys), 'seed')}"
        )
    dense_line(axes, task)
    _limit(axes, task, listed or front.settings)
    axes.set_xlabel("parameters of the whole model")
    axes.set_ylabel(quality_label(task.dense))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    return tips


def _reach(interval: Interval) -> list[list[float]] | None:
    if interval.low is None or interval.high is None:
        return None
    return [[interval.value - interval.low], [interval.high - interval.value]]


def _limit(axes: Any, task: TaskResult, shown: Sequence[SettingFigures]) -> None:
    """To the settings that may be on the front: one that diverged would flatten them."""
    edges = [task.dense.quality]
    for each in shown:
        quality = each.quality
        edges += [v for v in (quality.value, quality.low, quality.high) if v is not None]
    low, high = min(edges), max(edges)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)


def draw_volumes(figure: Figure, front: NoisyFront) -> Tips:
    """The hypervolume over the training that was paid for, with its interval."""
    axes, tips = figure.add_subplot(), dict[str, str]()
    hours = [point.train_seconds / 3600 for point in front.volumes]
    values = [point.volume.value for point in front.volumes]
    low = [_edge(point.volume.low, point.volume.value) for point in front.volumes]
    high = [_edge(point.volume.high, point.volume.value) for point in front.volumes]
    axes.fill_between(hours, low, high, step="post", color=PALETTE[0], alpha=0.18, lw=0)
    axes.step(hours, values, where="post", color=PALETTE[0], lw=1.6)
    for index, (x, y, point) in enumerate(zip(hours, values, front.volumes, strict=True)):
        mark = f"volume-{index}"
        axes.plot(x, y, "o", ms=4, color=PALETTE[0], gid=mark)
        tips[mark] = (
            f"{interval_in_words(point.volume, percent)} after {duration(point.train_seconds)} "
            f"and {plural(point.num_settings, 'setting')}"
        )
    axes.set_xlabel("hours of training, dense reference included")
    axes.set_ylabel("hypervolume")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.set_ylim(bottom=0)
    return tips


def _edge(value: float | None, otherwise: float) -> float:
    return value if value is not None and math.isfinite(value) else otherwise
