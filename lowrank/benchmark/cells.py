"""One cell of the table: every form of both models on one piece of work, in interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from lowrank.benchmark.forms import COMPILED, FORMS, Form, Unavailable, check_forms
from lowrank.benchmark.phases import Work, call_of, device_of, make_inputs
from lowrank.benchmark.subjects import Subject
from lowrank.counting import count_macs
from lowrank.timing import Ratio, check_repeats, paired_ratio, synchronizer, time_rounds

Side = Literal["dense", "compressed"]
Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One form of one of the two models."""

    side: Side
    form: str
    samples_ms: list[float]
    """Per call, one per round; empty if the form could not be built."""
    speedup: Ratio | None
    """Against the dense model in eager mode."""
    promised: float | None
    """The ratio of multiply-accumulates, for forms that make the model's own."""
    num_tokens: int
    """That one call took or made; those made are counted, not assumed."""
    deviation: float | None = None
    """Of the output from that of the same model in eager mode: norm of the difference over the
    norm. When decoding, the share of tokens that differ."""
    reason: str = ""
    """Why there is no figure."""

    @property
    def median_ms(self) -> float | None:
        return median(self.samples_ms) if self.samples_ms else None

    def to_json(self) -> dict[str, Any]:
        """With what follows from the samples."""
        taken = self.median_ms
        speedup, promised = self.speedup, self.promised
        return asdict(self) | {
            "median_ms": taken,
            "tokens_per_s": None if taken is None else self.num_tokens / taken * 1e3,
            "attained": speedup.median / promised if speedup and promised else None,
            "is_faster": None if speedup is None else speedup.is_faster,
        }


def measure_cell(
    subject: Subject, work: Work, forms: Sequence[str], repeats: int, seed: int = 0
) -> dict[str, Any]:
    """Time every form that can be built; JSON.

    Args:
        subject: The two models.
        work: What they are run on.
        forms: Names out of `FORMS`; eager mode is always among those timed.
        repeats: Rounds, >= `MIN_REPEATS`.
        seed: Of inputs and bootstrap.

    Returns:
        The work, multiply-accumulates per token of both models, a row per form (`Row.to_json`),
        and the best of eager and compiled on both sides.
    """
    check_repeats(repeats)
    # shapes of another cell would count as recompilations of the same code, of which few are made
    torch._dynamo.reset()
    macs = {side: _macs(model, work, seed) for side, model in _sides(subject)}
    promised = macs["dense"] / macs["compressed"]
    entries = {
        (side, name): _entry(model, FORMS[name], work, seed)
        for side, model in _sides(subject)
        for name in check_forms([*forms])
        if side == "compressed" or FORMS[name].dense
    }
    calls = {key: entry.call for key, entry in entries.items() if entry.call is not None}
    with torch.inference_mode():
        timed = time_rounds([*calls.values()], repeats, synchronizer(device_of(subject.dense)))
    seconds = dict(zip(calls, timed, strict=True))
    rows = []
    for (side, name), entry in entries.items():
        taken = seconds.get((side, name), [])
        promise = promised if side == "compressed" else 1.0
        row = Row(
            side=side,
            form=name,
            samples_ms=[1e3 * second for second in taken],
            speedup=paired_ratio(seconds["dense", "eager"], taken, seed) if taken else None,
            promised=promise if taken and FORMS[name].same_arithmetic else None,
            num_tokens=entry.num_tokens(work),
            deviation=entry.deviation(entries[side, "eager"]),
            reason=entry.reason,
        )
        rows.append(row.to_json())
    return {
        **asdict(work),
        "macs_per_token": {side: count / work.num_tokens for side, count in macs.items()},
        "promised": promised,
        "rows": rows,
        "best": _best(seconds, promised, seed),
    }


@dataclass(frozen=True, slots=True)
class _Entry:
    """A form ready to be timed, and what it gave the first time; or why there is none."""

    call: Call | None
    output: Tensor | None
    """Logits, or generated tokens."""
    reason: str = ""

    def num_tokens(self, work: Work) -> int:
        if work.phase == "decode":
            return 0 if self.output is None else self.output.numel()
        return work.num_tokens

    def deviation(self, eager: _Entry) -> float | None:
        if self.output is None or eager.output is None:
            return None
        if not self.output.is_floating_point():
            return float((self.output != eager.output).double().mean())
        found, wanted = self.output.double(), eager.output.double()
        return float((found - wanted).norm() / wanted.norm())


def _sides(subject: Subject) -> list[tuple[Side, Any]]:
    return [("dense", subject.dense), ("compressed", subject.compressed)]


def _entry(model: Any, form: Form, work: Work, seed: int) -> _Entry:
    inputs = make_inputs(model, work, seed)
    try:
        if work.phase == "decode" and not form.decodes:
            raise Unavailable("this form keeps no KV cache")
        run = form.build(model, inputs)
        with torch.inference_mode():
            call = call_of(run, model, work, inputs, form.static_cache)
            return _Entry(call, _first_output(call))
    except Unavailable as error:
        return _Entry(None, None, str(error))


def _first_output(call: Call) -> Tensor:
    """What a compiler refuses shows here."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        output: Any = call()
    except TorchDynamoException as error:
        first = str(error).strip().splitlines() or [""]
        raise Unavailable(f"torch.compile: {type(error).__name__}: {first[0]}") from error
    return output if isinstance(output, Tensor) else output.logits


def _macs(model: Any, work: Work, seed: int) -> float:
    with torch.no_grad():
        # the counter does not run in inference mode, nor may it write to a cache made in it
        return count_macs(call_of(model, model, work, make_inputs(model, work, seed)))


def _best(
    seconds: dict[tuple[Side, str], list[float]], promised: float, seed: int
) -> dict[str, Any]:
    """The best of eager and compiled for both models, against each other."""
    chosen = {}
    for side in ("dense", "compressed"):
        known = [form for form in ("eager", *COMPILED) if (side, form) in seconds]
        chosen[side] = min(known, key=lambda form: median(seconds[side, form]))
    ratio = paired_ratio(
        seconds["dense", chosen["dense"]], seconds["compressed", chosen["compressed"]], seed
    )
    return {
        **chosen,
        "speedup": asdict(ratio),
        "attained": ratio.median / promised,
        "is_faster": ratio.is_faster,
    }
