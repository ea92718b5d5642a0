"""What a search keeps beside its models: what rungs decided, what was drawn, where it started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.draws import DRAWS, Draws
from orchestrator.earlier import EARLIER, EarlierTrial, Readings
from orchestrator.layout import Layout
from orchestrator.spec_io import load_spec
from orchestrator.stopping.notes import Notes, Passed, read_notes
from tests.bad_inputs.case import BadInput
from tests.bad_inputs.changes import Change, edited, rewritten
from tests.jobs.specs import write_spec

GROUP = "A search that goes on"
KEY = "0123456789abcdef"
NOTE = f"{KEY}.json"


def _case(
    what: str, made: Callable[[Path], None], reader: str, read: Callable[[], object]
) -> BadInput:
    return BadInput(
        group=GROUP, what=what, made=made, reader=reader, read=lambda: str(read()), status=1
    )


def _note(what: str, change: Change) -> BadInput:
    """What the first rung said of one trial."""

    def made(folder: Path) -> None:
        layout = Layout.of(str(folder / "runs"), "small")
        passed = Passed(
            rung=0.5,
            step=40,
            validation=4.5,
            excess=0.0,
            density=0.3,
            kept=True,
            reason="1st of 4",
            rank=0,
            place=1,
            among=4,
        )
        Notes(layout, "letters").passed(KEY, 80, passed)
        change(layout.stopping)

    return _case(
        f"a rung's note {what}", made, "read_notes", lambda: read_notes(Layout.of("runs", "small"))
    )


def _draws(what: str, change: Change) -> BadInput:
    def made(folder: Path) -> None:
        Draws(folder / DRAWS).batch("first", lambda: [{"density": 0.3}, {"density": 0.5}])
        change(folder)

    return _case(
        f"{DRAWS} {what}", made, "Draws", lambda: Draws(Path.cwd() / DRAWS).batch("first", list)
    )


def _warm(what: str, change: Change) -> BadInput:
    def made(folder: Path) -> None:
        write_spec(folder, "search:", "search:\n  warm_start: {campaigns: [before]}")
        trial = EarlierTrial(
            campaign="before",
            run_id="a" * 32,
            method_name="adaptive",
            config={"kind": "adaptive", "density": 0.3},
            task_digest="b" * 16,
            loss=4.5,
            excess=0.0,
        )
        spec = load_spec(folder / "spec.yaml")
        readings = Readings(folder / EARLIER)
        readings.add(spec, spec.tasks[0], "c" * 16, [trial])
        readings.save()
        change(folder)

    return _case(f"{EARLIER} {what}", made, "Readings", lambda: Readings(Path.cwd() / EARLIER))


def _cut(content: bytes) -> bytes:
    """Before the last comma: these files are too small to have one in each half."""
    return content[: content.rindex(b",")]


CASES = [
    _note("empty", rewritten(NOTE, lambda b: b"")),
    _note("cut before its end", rewritten(NOTE, _cut)),
    _note("that is a list", rewritten(NOTE, lambda b: b"[]")),
    _note("nested 100,000 deep", rewritten(NOTE, lambda b: b"[" * 100_000)),
    _note("with NaN", edited(NOTE, lambda n: n["passed"][0].update(validation=float("nan")))),
    _note("without its steps", edited(NOTE, lambda n: n.pop("total_steps"))),
    _note("with a verdict that is text", edited(NOTE, lambda n: n["passed"][0].update(kept="so"))),
    _note("with a key more", edited(NOTE, lambda n: n["passed"][0].update(extra=1))),
    _note("of another trial", edited(NOTE, lambda n: n.update(key="f" * 16))),
    _note("that is a folder", lambda f: ((f / NOTE).unlink(), (f / NOTE).mkdir())),
    _draws("cut before its end", rewritten(DRAWS, _cut)),
    _draws("that is a list", rewritten(DRAWS, lambda b: b"[]")),
    _draws("with a number for a draw", edited(DRAWS, lambda d: d.update(first=[0.3]))),
    _draws("with NaN", edited(DRAWS, lambda d: d["first"][0].update(density=float("nan")))),
    _warm("cut before its end", rewritten(EARLIER, _cut)),
    _warm("that is a list", rewritten(EARLIER, lambda b: b"[]")),
    _warm("with NaN", edited(EARLIER, lambda e: _first(e).update(loss=float("nan")))),
    _warm("with a trial without its loss", edited(EARLIER, lambda e: _first(e).pop("loss"))),
    _warm("with a loss that is text", edited(EARLIER, lambda e: _first(e).update(loss="low"))),
    _warm("with a key more", edited(EARLIER, lambda e: _first(e).update(extra=1))),
]


def _first(readings: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    (trials,) = readings.values()
    return trials[0]
