"""A plan and a comparison as a person reads them in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.plan.actual import Comparison
from orchestrator.plan.disk import KEPT_PARTS
from orchestrator.plan.figures import Range
from orchestrator.plan.hours import PARTS
from orchestrator.plan.plan import COUNTED, GIVEN, Plan, TaskPlan
from orchestrator.report_plan import plan_view
from orchestrator.wording import count, duration, facts, plural


def show_plan(plan: Plan, console: Console) -> None:
    """Tasks, the sum, how it fits, and what is left unused."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style))

    steps = sum(sum(task.steps.values()) for task in plan.tasks)
    tasks, models = plural(len(plan.tasks), "task"), plural(plan.num_models, "model")
    most = "at most " if plan.at_most else ""
    say(
        f"campaign {plan.name}: {tasks}, {most}{models}, {steps:,} steps, on {plan.machines}",
        "bold",
    )
    if plan.at_most:
        say("search.stopping may end draws early: steps, time and compute are at most these")
    if plan.source == GIVEN:
        say(f"costs from a profile of: {facts(plan.machine)}")
    for task in plan.tasks:
        say("")
        say(_headline(task), "bold")
        if task.hours is not None:
            console.print(_hours(task))
        memory = [f"{count(task.memory_bytes, 'B')} memory"] if task.memory_bytes else []
        memory += [f"{count(task.device_bytes, 'B')} of its GPU"] if task.device_bytes else []
        if memory:
            say(f"  a worker takes up to {' and '.join(memory)}")
    say("")
    if plan.seconds is None:
        say("hours    not without a probe" if plan.source == COUNTED else "")
    else:
        say(f"time     {spread(plan.seconds)} from start to end", "bold")
        held = [("CPU", plan.cpu_seconds), ("GPU", plan.gpu_seconds)]
        words = [f"{hours(s)} {name} hours" for name, s in held if s is not None]
        say(f"compute  {', '.join(words)} held by workers")
    parts = ", ".join(f"{p} {count(plan.bytes[p], 'B')}" for p in KEPT_PARTS if plan.bytes[p])
    say(f"storage  {count(sum(plan.bytes.values()), 'B')} kept: {parts}")
    say(f"         and up to {count(plan.passing_bytes, 'B')} for a while: states of trainings")
    for warning in plan.warnings:
        say(f"beware   {warning}", "yellow")
    for note in plan.unused:
        say(f"unused   {note}")


def _headline(task: TaskPlan) -> str:
    rounds = " + ".join(map(str, task.rounds))
    trials = f"{plural(task.trials, 'trial')}"
    if len(task.rounds) > 1:
        trials += f" in {len(task.rounds)} rounds ({rounds})"
    steps = ", ".join(f"{number:,} {phase}" for phase, number in task.steps.items())
    return (
        f"{task.task} ({task.kind}): dense and {trials}, {task.side_by_side} at a time, "
        f"{plural(task.workers, 'worker')} each; steps: {steps}"
    )


def _hours(task: TaskPlan) -> Table:
    assert task.hours is not None
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("")
    for part in PARTS:
        if part in task.hours.parts:
            seconds = task.hours.parts[part]
            table.add_row(f"  {part}", duration(seconds.value), between(seconds))
    wall = task.hours.wall
    table.add_row("  from its first trial to its end", duration(wall.value), between(wall))
    return table


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Planned beside actual."""
    view = plan_view(comparison)
    console.print(Text(f"plan of {comparison.made}", style="bold"))
    for rows in view["tables"] if view else []:
        table = Table(box=None, pad_edge=False, padding=(0, 2))
        table.add_column("")
        for heading in ("planned", "range", "actual", "off by"):
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
    for note in comparison.notes:
        console.print(Text(f"beware   {note}", style="yellow"))


def spread(seconds: Range) -> str:
    """`9 min 40 s (8 min 5 s to 11 min 12 s)`."""
    return f"{duration(seconds.value)} {between(seconds)}"


def between(seconds: Range) -> str:
    return f"({duration(seconds.low)} to {duration(seconds.high)})"


def hours(seconds: Range) -> str:
    value, low, high = (s / 3600 for s in (seconds.value, seconds.low, seconds.high))
    return f"{value:.3g} ({low:.3g} to {high:.3g})"
