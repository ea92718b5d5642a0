"""Names and paths that a person gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.layout import Layout
from tests.bad_inputs.case import BadInput, command
from tests.jobs.specs import write_spec

GROUP = "Names and paths"
LONG = "x" * 300


def _set(what: str, field: str, value: str) -> BadInput:
    """In a spec, or over it by `--set`."""
    return BadInput(
        group=GROUP,
        what=what,
        made=_with_folders,
        reader=f"lowrank validate spec.yaml --set {field}=...",
        read=command("validate", "spec.yaml", "--set", f"{field}={value}"),
        status=2,
    )


def _command(what: str, shown: str, status: int, *words: str) -> BadInput:
    return BadInput(
        group=GROUP,
        what=what,
        made=_with_folders,
        reader=f"lowrank {shown}",
        read=command(*words),
        status=status,
    )


def _with_folders(folder: Path) -> None:
    write_spec(folder)
    (folder / "a-folder").mkdir()
    (folder / "loop.yaml").symlink_to("loop.yaml")


def _call(what: str, reader: str, read: Callable[[], str]) -> BadInput:
    return BadInput(group=GROUP, what=what, made=_with_folders, reader=reader, read=read, status=1)


CASES = [
    _set("a campaign above the storage", "name", "../up"),
    _set("a campaign with an absolute path", "name", "/etc"),
    _set("a campaign called ..", "name", ".."),
    _set("a campaign below another", "name", "a/b"),
    _set("a campaign without a name", "name", '""'),
    _set("a campaign of 65 characters", "name", "x" * 65),
    _set("a campaign in capitals", "name", "CON"),
    _set("a campaign in another script", "name", "кампания"),
    _set("a campaign that turns the writing around", "name", '"a\\u202egnp"'),
    _set("a campaign with a line break", "name", '"a\\n"'),
    _set("a campaign where prepared data lie", "name", "cache"),
    _set("a campaign where MLflow's files lie", "name", "mlflow-artifacts"),
    _set("a campaign where MLflow's database lies", "name", "mlflow.db"),
    _set("a campaign beside MLflow's database", "name", "mlflow.db-wal"),
    _set("a task above the storage", "tasks.moods.name", "../up"),
    _set("a task with the name of another", "tasks.moods.name", "letters"),
    _set("a method with a path", "search.methods", "{a/b: {}}"),
    _set("a registered model with a path", "promote.model", "../{task}"),
    _set("a registered model of a thousand characters", "promote.model", f'"{{task}}{LONG}"'),
    _set("a registered model for all tasks", "promote.model", '"{{task}}"'),
    _set("a registered model of 10^11 characters", "promote.model", '"{task:>99999999999}"'),
    _set("a registered model that looks inside", "promote.model", '"{task.__class__}"'),
    _set("a registered model with a line break", "promote.model", '"{task}\\n"'),
    _set("data with a NUL byte in their path", "tasks.letters.data.train", '"a\\0b"'),
    _set("data with a path that is too long", "tasks.letters.data.train", "x" * 5000),
    _set("data of a user who is not there", "tasks.letters.data.train", "~nobody-here/x"),
    _set("a bucket with a key and its secret", "storage", "s3://KEY:SECRET@bucket/runs"),
    _set("a bucket with a secret behind it", "storage", "s3://bucket/runs?secret_key=SECRET"),
    _set("a bucket above its prefix", "storage", "s3://bucket/runs/../others"),
    _set("a bucket without a name", "storage", "s3:///runs"),
    _set("a bucket and no tracking store", "storage", "s3://bucket/runs"),
    _set("a field that is not there", "tasks.letters.__class__", "1"),
    _command("a spec that is not there", "validate absent.yaml", 2, "validate", "absent.yaml"),
    _command("a spec that is a folder", "validate a-folder", 2, "validate", "a-folder"),
    _command("a spec that is a link to itself", "validate loop.yaml", 2, "validate", "loop.yaml"),
    _command("a spec with a name that is too long", "validate xxx...", 2, "validate", LONG),
    _command(
        "a task that is not there",
        "compress spec.yaml --task ../x",
        1,
        "compress",
        "spec.yaml",
        "--task",
        "../x",
        "-o",
        "out",
    ),
    _command(
        "a task of a thousand characters",
        "compress spec.yaml --task xxx...",
        1,
        "compress",
        "spec.yaml",
        "--task",
        "x" * 1000,
        "-o",
        "out",
    ),
    _command(
        "an output with a name that is too long",
        "compress spec.yaml -o xxx...",
        1,
        "compress",
        "spec.yaml",
        "--task",
        "letters",
        "-o",
        LONG,
    ),
    _command(
        "an output below a file",
        "compress spec.yaml -o spec.yaml/out",
        1,
        "compress",
        "spec.yaml",
        "--task",
        "letters",
        "-o",
        "spec.yaml/out",
    ),
    _command(
        "an output that nobody may make",
        "compress spec.yaml -o /proc/out",
        1,
        "compress",
        "spec.yaml",
        "--task",
        "letters",
        "-o",
        "/proc/out",
    ),
    _command(
        "an output in use",
        "compress spec.yaml -o .",
        1,
        "compress",
        "spec.yaml",
        "--task",
        "letters",
        "-o",
        ".",
    ),
    _command(
        "a page that is no Markdown",
        "results spec.yaml --out /etc/passwd",
        1,
        "results",
        "spec.yaml",
        "--out",
        "/etc/passwd",
    ),
    _command(
        "a page with a name that is too long",
        "results spec.yaml --out xxx.md",
        1,
        "results",
        "spec.yaml",
        "--out",
        LONG + ".md",
    ),
    _command(
        "an export with a name that is too long",
        "export xxx... --form folded",
        1,
        "export",
        LONG,
        "--form",
        "folded",
        "--out",
        "out",
    ),
    _command(
        "a form that is not there",
        "export a-folder --form ../x",
        1,
        "export",
        "a-folder",
        "--form",
        "../x",
        "--out",
        "out",
    ),
    _command(
        "a result with a name that is too long",
        "export a-folder --out xxx...",
        1,
        "export",
        "a-folder",
        "--form",
        "folded",
        "--out",
        LONG,
    ),
    _call(
        "a storage that nobody may make",
        "Layout.create",
        lambda: str(Layout(Path("/proc"), "small").create()),
    ),
    _call(
        "a storage below a file",
        "Layout.create",
        lambda: str(Layout(Path.cwd() / "spec.yaml", "small").create()),
    ),
    _call(
        "a storage with a name that is too long",
        "Layout.create",
        lambda: str(Layout(Path.cwd() / LONG, "small").create()),
    ),
]
