"""What a campaign left behind: states of trainings, prepared data, records, journals."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from lowrank.export import sha256_of
from orchestrator.campaign_records import Choice, TaskResult
from orchestrator.data.prepare import prepare_data
from orchestrator.data.prepared import PreparedData
from orchestrator.records import ModelRecord
from orchestrator.snapshot import FACTS, TENSORS, Snapshot, SnapshotStore
from tests.bad_inputs.case import BadInput, command
from tests.bad_inputs.changes import Change, Edit, edited, half, half_json, last_flipped, rewritten
from tests.jobs.specs import write_spec
from tests.orchestrator.data.tasks import language_task, prose, text_files
from tests.orchestrator.record_factory import (
    make_campaign,
    make_dense,
    make_task_result,
    make_trial,
)

STATES, DATA, RECORDS = "States of trainings", "Prepared data", "Records"
STEP = "000000002"


# --------------------------------------------------------------------------- states


def _state(what: str, change: Change) -> BadInput:
    def made(folder: Path) -> None:
        tensors = {"model.a": torch.ones(3)}
        SnapshotStore(folder).save(2, Snapshot(tensors=tensors, facts={"step": 2}))
        change(folder / STEP)

    return BadInput(
        group=STATES,
        what=what,
        made=made,
        reader="SnapshotStore.load",
        read=lambda: str(SnapshotStore(Path.cwd()).load(2)),
        status=1,
    )


def _pickled(folder: Path) -> None:
    """The digest is right, so that it is the format that counts."""
    (folder / TENSORS).write_bytes(pickle.dumps({"model.a": 1}))
    edited(FACTS, lambda facts: facts.update(sha256=sha256_of(folder / TENSORS)))(folder)


STATE_CASES = [
    _state("missing", lambda folder: folder.rename(folder.with_name("000000003"))),
    _state("tensors missing", lambda folder: (folder / TENSORS).unlink()),
    _state("tensors cut in half", rewritten(TENSORS, half)),
    _state("one bit flipped in the tensors", rewritten(TENSORS, last_flipped)),
    _state("tensors that are a pickle", _pickled),
    _state("tensors of another state", lambda f: save_file({"b": torch.ones(3)}, f / TENSORS)),
    _state("facts missing", lambda folder: (folder / FACTS).unlink()),
    _state("facts cut in half", rewritten(FACTS, half_json)),
    _state("one fact changed", edited(FACTS, lambda facts: facts["facts"].update(step=9))),
    _state("facts without a digest", edited(FACTS, lambda facts: facts.pop("sha256"))),
    _state("facts that are a list", rewritten(FACTS, lambda b: b"[1]")),
    _state("facts nested 100,000 deep", rewritten(FACTS, lambda b: b"[" * 100_000)),
]


# --------------------------------------------------------------------------- prepared data


def _prepare(folder: Path) -> PreparedData:
    task = language_task(text_files(folder / "raw", train=prose(40)))
    return prepare_data(task, folder / "cache", None)


def _data(what: str, change: Change, reader: str = "PreparedData.open") -> BadInput:
    """Opened as a worker does, or found by a campaign that needs the data again."""

    def made(folder: Path) -> None:
        _prepare(folder).folder.rename(folder / "cache" / "data")
        change(folder / "cache" / "data")

    def read() -> str:
        return str(PreparedData.open(Path.cwd() / "cache" / "data").tokens("train"))

    return BadInput(group=DATA, what=what, made=made, reader=reader, read=read, status=2)


def _again(what: str, change: Change) -> BadInput:
    def made(folder: Path) -> None:
        change(_prepare(folder).folder)

    def read() -> str:
        return str(_prepare(Path.cwd()))

    return BadInput(group=DATA, what=what, made=made, reader="prepare_data", read=read, status=2)


def _array(array: np.ndarray, **options: Any) -> Change:
    """Another array, and an inventory that agrees with it."""

    def change(folder: Path) -> None:
        np.save(folder / TOKENS, array, **options)
        _agree(folder)

    return change


def _agree(folder: Path) -> None:
    path = folder / TOKENS
    entry = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    edited(INVENTORY, lambda inventory: inventory["files"].update({TOKENS: entry}))(folder)


def _lying_header(folder: Path) -> None:
    content = (folder / TOKENS).read_bytes()
    begin, end = content.index(b"'shape': ("), content.index(b"\n")
    shape = b"'shape': (9999999999999,), }"
    (folder / TOKENS).write_bytes(content[:begin] + shape.ljust(end - begin) + content[end:])
    _agree(folder)


def _files(edit: Edit) -> Change:
    return edited(INVENTORY, lambda inventory: edit(inventory["files"]))


def _info(edit: Edit) -> Change:
    """As an earlier version left it, without a digest."""

    def change(inventory: dict[str, Any]) -> None:
        del inventory["info_sha256"]
        edit(inventory["info"])

    return edited(INVENTORY, change)


def _other_count(inventory: dict[str, Any]) -> None:
    inventory["info"]["splits"]["test"]["num_words"] += 1


INVENTORY, TOKENS = "data.json", "train.tokens.npy"
DATA_CASES = [
    _data("no inventory", lambda folder: (folder / INVENTORY).unlink()),
    _data("inventory cut in half", rewritten(INVENTORY, half_json)),
    _data("inventory nested 100,000 deep", rewritten(INVENTORY, lambda b: b"[" * 100_000)),
    _data("inventory of another version", edited(INVENTORY, lambda i: i.update(format=99))),
    _data("inventory of files that is a list", edited(INVENTORY, lambda i: i.update(files=[]))),
    _data("inventory without a vocabulary", _info(lambda info: info.pop("vocab_size"))),
    _data("inventory with a vocabulary of -1", _info(lambda info: info.update(vocab_size=-1))),
    _data("inventory with another count", edited(INVENTORY, _other_count)),
    _data("inventory without splits", _info(lambda info: info.update(splits={}))),
    _data("a file elsewhere, by ..", _files(lambda f: f.update({"../../../etc/passwd": {}}))),
    _data("a file elsewhere, by its path", _files(lambda f: f.update({"/etc/passwd": {}}))),
    _data("a file without a digest", _files(lambda f: f.update({TOKENS: {"size": 1}}))),
    _data("a file that is not named", _files(lambda f: f.pop(TOKENS))),
    _data("an array missing", lambda folder: (folder / TOKENS).unlink()),
    _data("an array cut in half", rewritten(TOKENS, half)),
    _data("an array of objects", _array(np.array([{}], dtype=object), allow_pickle=True)),
    _data("an array that is text", lambda f: ((f / TOKENS).write_text("no array"), _agree(f))),
    _data("an array that says it has 10^13 numbers", _lying_header),
    _again("one bit flipped in an array", rewritten(TOKENS, last_flipped)),
    _again("a tokenizer changed", lambda f: (f / "tokenizer" / "tokenizer.json").write_text("{}")),
    _again("another data's folder", edited(INVENTORY, lambda i: i.update(content_hash="0" * 16))),
]


# --------------------------------------------------------------------------- records


def _record(what: str, change: Callable[[Path], object]) -> BadInput:
    def made(folder: Path) -> None:
        make_trial().save(folder / "record.json")
        change(folder)

    return BadInput(
        group=RECORDS,
        what=f"record.json {what}",
        made=made,
        reader="ModelRecord.load",
        read=lambda: str(ModelRecord.load(Path.cwd() / "record.json")),
        status=1,
    )


def task_result() -> TaskResult:
    choice = Choice(key=None, sentence="none was picked", front=[], passed=[])
    return make_task_result(trials=[make_trial()], dense=make_dense(), choice=choice)


def _result(what: str, change: Callable[[Path], object]) -> BadInput:
    def made(folder: Path) -> None:
        write_spec(folder)
        (folder / "runs" / "small").mkdir(parents=True)
        result = make_campaign([task_result()])
        result.save(folder / "runs" / "small" / "result.json")
        change(folder / "runs" / "small")

    return BadInput(
        group=RECORDS,
        what=f"result.json {what}",
        made=made,
        reader="lowrank report spec.yaml",
        read=command("report", "spec.yaml"),
        status=1,
    )


def _endless(content: bytes) -> bytes:
    return content.replace(b'"train_seconds": ', b'"train_seconds": 1e999, "a": ')


RECORD, RESULT = "record.json", "result.json"
RECORD_CASES = [
    _record("missing", lambda folder: (folder / RECORD).unlink()),
    _record("empty", rewritten(RECORD, lambda b: b"")),
    # not in half: how long the figures before that are differs from machine to machine
    _record("cut in a name", rewritten(RECORD, lambda b: b[: b.index(b'"validation"') + 4])),
    _record("that is binary", rewritten(RECORD, lambda b: bytes(range(128, 256)))),
    _record("that is a list", rewritten(RECORD, lambda b: b"[]")),
    _record("nested 100,000 deep", rewritten(RECORD, lambda b: b"[" * 100_000)),
    _record("with NaN", edited(RECORD, lambda r: r["test"].update(perplexity=float("nan")))),
    _record("with 1e999", rewritten(RECORD, _endless)),
    _record("without its size", edited(RECORD, lambda r: r.pop("size"))),
    _record("with a key more", edited(RECORD, lambda r: r.update(extra=1))),
    _record("with a curve of another type", edited(RECORD, lambda r: r.update(curve="steep"))),
    _record("with a size that is text", edited(RECORD, lambda r: r["size"].update(num_bytes="x"))),
    _record("without the task's metric", edited(RECORD, lambda r: r.update(validation={}))),
    _result("cut in half", rewritten(RESULT, half_json)),
    _result("that is a folder", lambda f: ((f / RESULT).unlink(), (f / RESULT).mkdir())),
    _result("that is a list", rewritten(RESULT, lambda b: b"[]")),
    _result(
        "with a task less its dense model", edited(RESULT, lambda r: r["tasks"][0].pop("dense"))
    ),
    _result("with NaN", edited(RESULT, lambda r: r.update(seconds=float("nan")))),
]

CASES = [*STATE_CASES, *DATA_CASES, *RECORD_CASES]
