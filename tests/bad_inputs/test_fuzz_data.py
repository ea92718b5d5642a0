"""Data and names of any bytes and characters: an error of ours, or what is written there.

Seeded, so that every run tries the same; `derandomize=False` in `damage.tries` finds more.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.prepare import prepare_data
from orchestrator.data.prepared import INVENTORY, PreparedData
from orchestrator.data.table_corpus import read_table_corpus
from orchestrator.data.text_files import read_text
from orchestrator.errors import DataError, SpecError
from orchestrator.layout import Layout
from orchestrator.spec_io import load_spec
from tests.bad_inputs.damage import HOSTILE, damaged, edited, tries
from tests.jobs.specs import write_spec
from tests.orchestrator.data.tasks import classification_task, language_task, prose, text_files


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("prepared")
    task = language_task(text_files(folder / "raw", train=prose(30)))
    return prepare_data(task, folder / "cache", None)


def test_prepared_data_with_damaged_bytes(prepared: PreparedData, fresh):
    names = [p.relative_to(prepared.folder) for p in prepared.folder.rglob("*") if p.is_file()]
    refused = []

    @tries(100)
    @given(data=st.data(), name=st.sampled_from(sorted(names)))
    def check(data: st.DataObject, name: Path) -> None:
        path = fresh(prepared.folder) / name
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        try:
            found = PreparedData.open(path.parents[len(name.parts) - 1], verify=True)
        except DataError:
            refused.append(name)
        else:  # white space, or the name of a folder that the opener compares
            assert name.name == INVENTORY
            assert found.info == prepared.info

    check()
    assert set(refused) == set(names)


def test_prepared_data_whose_inventory_lies(prepared: PreparedData, fresh):
    inventory = json.loads((prepared.folder / INVENTORY).read_text())
    tokens = prepared.tokens("train").tolist()
    refused = []

    @tries(150)
    @given(data=st.data(), signed=st.booleans())
    def check(data: st.DataObject, signed: bool) -> None:
        here = fresh(prepared.folder)
        lies = data.draw(edited(inventory))
        if not signed:
            lies.pop("info_sha256", None)
        (here / INVENTORY).write_text(json.dumps(lies))
        try:
            found = PreparedData.open(here)
            assert found.vocab_size > 0
            assert found.tokens("train").tolist() == tokens
            assert isinstance(found.label_names, list)
        except DataError as error:
            refused.append(str(error))

    check()
    assert len(refused) > 50
    assert max(map(len, refused)) < 1500


def test_arrays_of_any_bytes(prepared: PreparedData, fresh):
    """Even if the inventory says that they are right."""
    path = fresh(prepared.folder) / "train.tokens.npy"
    inventory = json.loads((path.parent / INVENTORY).read_text())
    content, refused = path.read_bytes(), []

    @tries(150)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        start = data.draw(damaged(content[:128]))
        path.write_bytes(start + content[128:])
        inventory["files"][path.name]["size"] = path.stat().st_size
        (path.parent / INVENTORY).write_text(json.dumps(inventory))
        try:
            assert isinstance(PreparedData.open(path.parent).tokens("train"), np.ndarray)
        except DataError as error:
            refused.append(str(error))

    check()
    assert refused
    assert not any("pickle" in message for message in refused)  # NumPy advises to unpickle


def test_a_text_of_any_bytes(tmp_path: Path):
    path = tmp_path / "any.txt"
    refused = []

    @tries(200)
    @given(content=st.one_of(st.binary(max_size=200), HOSTILE.map(str.encode)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = read_text(str(path))
        except DataError as error:
            refused.append(str(error))
        else:
            assert content.decode().removeprefix("\ufeff") == found

    check()
    assert refused
    assert all(str(path) in message for message in refused)


@pytest.mark.parametrize("level", ["character", "word", "token"])
def test_a_text_of_any_characters_is_prepared(level: str, tmp_path: Path):
    """Documents between which the text of a user may hold anything."""
    prepared_once = []

    @tries(12)
    @given(lines=st.lists(HOSTILE, min_size=4, max_size=12))
    def check(lines: list[str]) -> None:
        text = "\n".join(lines).replace("\0", "")
        files = text_files(tmp_path, train=text, validation=prose(2), test=prose(3))
        task = language_task(files, level=level, vocab_size=300)
        try:
            found = prepare_data(task, tmp_path / "cache", None)
        except DataError:
            return
        prepared_once.append(found)
        for split in ("train", "validation", "test"):
            assert found.tokens(split).max() < found.vocab_size

    check()
    assert prepared_once


def test_a_table_of_any_cells(tmp_path: Path):
    cells = st.one_of(HOSTILE, st.sampled_from(["good", "bad", "nan", "1", "1.5", "", "9" * 5000]))
    rows = st.lists(st.tuples(cells, cells), min_size=1, max_size=9)
    read, refused = [], []

    @tries(200)
    @given(rows=rows, ending=st.sampled_from(["\n", "\r\n", "\r"]))
    def check(rows: list[tuple[str, str]], ending: str) -> None:
        rows = [("sentence", "label"), *rows, ("a", "good"), ("b", "bad"), ("c", "bad")]
        lines = ["\t".join(row) for row in rows]
        path = tmp_path / "any.tsv"
        path.write_bytes(ending.join(lines).encode())
        task = classification_task({"source": "files", "train": str(path)})
        try:
            corpus = read_table_corpus(task.data, None, None)
        except DataError as error:
            refused.append(str(error))
            return
        read.append(rows)
        numbers = {row.label for row in corpus.rows["train"]}
        assert numbers == set(range(len(corpus.label_names)))

    check()
    assert read
    assert max(map(len, refused)) < 1500


def test_a_campaign_stays_in_its_storage(tmp_path: Path):
    spec = write_spec(tmp_path)
    storage, taken = tmp_path / "runs", []
    start = st.sampled_from("abcxyz019.-_/~%$")
    names = st.one_of(HOSTILE, st.text("abz09._-/\\", min_size=1, max_size=70), start)

    @tries(80)
    @given(name=names)
    def check(name: str) -> None:
        try:
            found = load_spec(spec, [f"name={json.dumps(name)}"])
        except SpecError:
            return
        taken.append(name)
        root = Layout(Path(found.storage), found.name).root
        assert root.resolve().parent == storage.resolve()
        assert root.name not in ("cache", "mlflow-artifacts", "mlflow.db")

    check()
    assert taken
