"""From the times of a probed training to what its parts cost. Pure; the clock is the worker's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles

from orchestrator.plan.figures import DRIFT, JobCost, Range
from orchestrator.plan.work import GATED, SMALL, WHOLE

CLIP = 3.0
"""A step that took longer than so many medians was disturbed by something that came once."""
LEAST = 4
"""Steps of a stretch from which on its first one is left out: it makes the optimizer's state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A share of a split that was evaluated."""

    split: str
    began: float
    ended: float
    share: float
    """Of what this worker has to do of the split, 0 < share <= 1."""

    @property
    def whole_s(self) -> float:
        return (self.ended - self.began) / self.share


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One probed training, seen from its first worker. Times in seconds on one clock."""

    setting: str
    density: float
    phases: list[tuple[str, int]]
    """With their steps, in order; phases without steps are left out."""
    whole_validations: int
    """How many of the validations were of the model before its projection, the first ones."""
    began: float
    trained: float
    """When the last step and its validation were over."""
    ended: float
    reporting_s: float
    """Of the time after `trained`, what went into keeping the probe's own files."""
    beats: list[float]
    """When each step began."""
    tokens: list[int]
    """Of each step, this worker's."""
    typical_tokens: dict[str, float]
    """Mean over the steps that the campaign will take, by phase."""
    evaluations: list[Evaluation]
    model_bytes: dict[str, int]
    """By phase."""
    state_bytes: dict[str, int]
    """By phase."""
    weights_bytes: int
    export_bytes: int
    record_bytes: int
    point_bytes: float
    memory_bytes: int
    device_bytes: int = 0
    cold_s: float = 0.0
    """What setting up takes longer in a fresh process, which loads a model's code first. Every
    training of a campaign has one; a probe's have one together."""

    @property
    def setup_s(self) -> float:
        """Until the first step."""
        ends = self.beats[0] if self.beats else self.trained
        return max(0.0, ends - self.began - _evaluating(self, self.began, ends))


def cost_of(trace: Trace) -> JobCost:
    """What the parts of a probed training cost."""
    ends = [_end_of_step(trace, index) for index in range(len(trace.beats))]
    firsts, step_s, index = {}, {}, 0
    for phase, number in trace.phases:
        part = slice(index, index + number)
        took = [end - begin for begin, end in zip(trace.beats[part], ends[part], strict=True)]
        step_s[phase] = mean_step(took, trace.tokens[part], trace.typical_tokens.get(phase))
        firsts[phase], index = index, index + number
    projection_s = 0.0
    if GATED in firsts:
        over = ends[firsts[GATED] + dict(trace.phases)[GATED] - 1]
        following = firsts[GATED] + dict(trace.phases)[GATED]
        goes_on = trace.beats[following] if following < len(trace.beats) else trace.trained
        projection_s = goes_on - over - _evaluating(trace, over, goes_on)
    export_s = trace.ended - trace.trained - trace.reporting_s
    export_s -= _evaluating(trace, trace.trained, trace.ended)
    validations = [each for each in trace.evaluations if each.split == "validation"]
    kinds = {
        WHOLE: validations[: trace.whole_validations],
        SMALL: validations[trace.whole_validations :],
    }
    return JobCost(
        setting=trace.setting,
        density=trace.density,
        setup_s=Range.around(trace.setup_s + trace.cold_s),
        step_s=step_s,
        projection_s=Range.around(max(0.0, projection_s)),
        export_s=Range.around(max(0.0, export_s)),
        validation_s={kind: _whole(each) for kind, each in kinds.items() if each},
        test_s=_whole([each for each in trace.evaluations if each.split == "test"]),
        model_bytes=trace.model_bytes,
        state_bytes=trace.state_bytes,
        weights_bytes=trace.weights_bytes,
        export_bytes=trace.export_bytes,
        record_bytes=trace.record_bytes,
        point_bytes=trace.point_bytes,
        memory_bytes=trace.memory_bytes,
        device_bytes=trace.device_bytes,
        steps=dict(trace.phases),
    )


def mean_step(
    seconds: Sequence[float], tokens: Sequence[int], typical: float | None = None
) -> Range:
    """Mean time of a step of a stretch, for batches of a typical size.

    Batches of labelled texts are as long as their longest text: a few of them may be longer or
    shorter than most. So the mean is moved along the least-squares line of time over tokens
    (Cochran 1977, regression estimator), whose slope is at most that through the origin.

    Args:
        seconds: Of steps that follow each other.
        tokens: Of their batches.
        typical: Mean tokens of a batch; None takes those that were seen for typical.

    Returns:
        Mean, and the quartiles of the adjusted times or `DRIFT`, whichever is wider.
    """
    if not seconds:
        return Range()
    first = 1 if len(seconds) >= LEAST else 0
    took, sizes = list(seconds[first:]), list(tokens[first:])
    middle = median(took)
    took = [min(value, CLIP * middle) for value in took]
    slope = _slope(took, sizes)
    wanted = fmean(sizes) if typical is None else typical
    adjusted = [value + slope * (wanted - size) for value, size in zip(took, sizes, strict=True)]
    mean = fmean(adjusted)
    low, high = mean, mean
    if len(adjusted) > 1:
        low, _, high = quantiles(adjusted, n=4, method="inclusive")
    return Range(value=mean, low=min(low, mean * (1 - DRIFT)), high=max(high, mean * (1 + DRIFT)))


def _slope(seconds: Sequence[float], tokens: Sequence[int]) -> float:
    """Seconds per token."""
    mean_s, mean_t = fmean(seconds), fmean(tokens)
    spread = sum((t - mean_t) ** 2 for t in tokens)
    if spread == 0 or mean_t == 0:
        return 0.0
    together = sum((t - mean_t) * (s - mean_s) for t, s in zip(tokens, seconds, strict=True))
    return min(max(0.0, together / spread), mean_s / mean_t)


def _end_of_step(trace: Trace, index: int) -> float:
    """The next step, or a validation, or the end of the training."""
    began = trace.beats[index]
    after = [*trace.beats[index + 1 : index + 2], trace.trained]
    after += [each.began for each in trace.evaluations if each.began >= began]
    return min(after)


def _evaluating(trace: Trace, begin: float, end: float) -> float:
    return sum(e.ended - e.began for e in trace.evaluations if begin <= e.began < end)


def _whole(evaluations: Sequence[Evaluation]) -> Range:
    if not evaluations:
        return Range()
    # the first pass of a process is slower, and there are many
    return Range.around(median(each.whole_s for each in evaluations))
