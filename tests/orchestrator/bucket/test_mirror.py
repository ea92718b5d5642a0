"""Folders between machines and a real store: whole, or not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.bucket.mirror import SMALL, BucketMirror
from orchestrator.bucket.objects import DamagedError, Objects
from orchestrator.bucket.places import borrowed, here, opened, path_here
from orchestrator.bucket.seal import SEAL
from orchestrator.errors import StorageError
from tests.orchestrator.bucket.conftest import Bucket
from tests.orchestrator.bucket.seaweed import READER

KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.bucket import objects
from orchestrator.bucket.places import opened

class Dies:
    def __init__(self, stream): self.stream, self.count = stream, 0
    def __enter__(self): return self
    def __exit__(self, *_): self.stream.close()
    def write(self, chunk):
        self.stream.write(chunk)
        self.count += 1
        if self.count == 2:
            os.kill(os.getpid(), signal.SIGKILL)

writing = objects.Objects._writing
objects.Objects._writing = lambda self, key: Dies(writing(self, key))
mirror, folder = opened(sys.argv[1])
mirror.push_folder(folder)
"""
FETCHES = """
import sys, time
from orchestrator.bucket.objects import Objects
from orchestrator.bucket.places import here

download, count = Objects.download, 0
def counted(self, *args, **kwargs):
    global count
    count += 1
    time.sleep(0.5)  # the other one comes meanwhile
    return download(self, *args, **kwargs)
Objects.download = counted
print("ready", flush=True)
sys.stdin.readline()
print(here(sys.argv[1]), count)
"""


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def fill(mirror: BucketMirror, uri: str, files: dict[str, bytes]) -> Path:
    folder = opened(uri)[1]
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


FILES = {"weights": b"w" * 100_000, "tokenizer/vocab.json": b"{}", "record.json": b'{"n": 1}'}


@pytest.fixture
def model(bucket: Bucket) -> str:
    """Sent by one machine; its URI."""
    uri = f"{bucket.uri}/models/k"
    mirror = bucket.seen_by("one")
    mirror.push_folder(fill(mirror, uri, FILES))
    return uri


def test_another_machine_gets_what_was_sent(bucket: Bucket, model: str):
    mirror = bucket.seen_by("two")
    folder = path_here(model)
    assert not folder.exists()
    assert here(model) == str(folder)
    assert content(folder) == FILES
    assert mirror.place(folder) == model
    assert mirror.objects.names(mirror.key(folder.parent)) == [f"k{SEAL}"]
    with pytest.raises(StorageError, match=f"{bucket.uri}/models/none is not in the bucket"):
        here(f"{bucket.uri}/models/none")


def test_what_is_here_is_not_fetched_again(
    bucket: Bucket, model: str, monkeypatch: pytest.MonkeyPatch
):
    bucket.seen_by("two")
    here(model)
    asked: list[str] = []
    download = Objects.download
    monkeypatch.setattr(
        Objects,
        "download",
        lambda self, key, *rest, **more: asked.append(key) or download(self, key, *rest, **more),
    )
    here(model)
    assert [key.rpartition("/")[2] for key in asked] == ["record.json"]
    Path(here(model), "weights").unlink()  # somebody made room
    assert content(Path(here(model))) == FILES


def test_a_record_grows_and_the_rest_stays(bucket: Bucket, model: str):
    bucket.seen_by("two")
    folder = Path(here(model))
    mirror = bucket.seen_by("one")
    record = path_here(model) / "record.json"
    record.write_bytes(b'{"n": 2}')
    mirror.push_file(record)
    bucket.seen_by("two")
    assert Path(here(model)) == folder
    assert content(folder) == FILES | {"record.json": b'{"n": 2}'}


def test_what_was_made_anew_takes_the_place_of_the_old(bucket: Bucket, model: str):
    bucket.seen_by("two")
    here(model)
    mirror = bucket.seen_by("three")
    mirror.push_folder(fill(mirror, model, {"weights": b"other", "record.json": b"{}"}))
    bucket.seen_by("two")
    assert content(Path(here(model))) == {"weights": b"other", "record.json": b"{}"}


def test_an_upload_that_was_killed_left_nothing(bucket: Bucket):
    """SIGKILL between two parts of a file."""
    uri = f"{bucket.uri}/models/k"
    mirror = bucket.seen_by("one")
    files = {"a": b"a", "large": bytes(range(256)) * 80_000}
    folder = fill(mirror, uri, files)
    done = subprocess.run([sys.executable, "-c", KILLED, uri], check=False, timeout=120)
    assert done.returncode == -9
    assert mirror.objects.read(mirror.key(folder / "a")) == b"a"
    bucket.seen_by("two")
    with pytest.raises(StorageError, match="not as a whole"):
        here(uri)
    mirror = bucket.seen_by("one")
    mirror.push_folder(folder)  # its lock went with the process that held it
    bucket.seen_by("two")
    assert content(Path(here(uri))) == files


@pytest.mark.parametrize("damage", ["changed", "shorter", "longer", "gone"])
def test_a_damaged_object_is_not_taken(bucket: Bucket, model: str, damage: str):
    mirror = bucket.seen_by("two")
    folder, key = path_here(model), mirror.key(path_here(model) / "weights")
    weights = FILES["weights"]
    if damage == "gone":
        mirror.objects.delete(key)
    else:
        other = {"changed": b"W" + weights[1:], "shorter": weights[1:], "longer": weights + b"w"}
        mirror.objects.write(key, other[damage])
    what = "is missing" if damage == "gone" else "is not what was written"
    with pytest.raises(DamagedError, match=f"{model}/weights {what}"):
        here(model)
    assert not folder.exists()
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize(
    "seal",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"files": {}}',
        json.dumps({"files": {"../up": {"size": 1, "sha256": "0"}}, "growing": []}).encode(),
        json.dumps({"files": {"/etc/up": {"size": 1, "sha256": "0"}}, "growing": []}).encode(),
        json.dumps({"files": {"a": {"size": "1", "sha256": "0"}}, "growing": []}).encode(),
        json.dumps({"files": {"a": {"size": 1}}, "growing": []}).encode(),
        json.dumps({"files": {}, "growing": ["../up"]}).encode(),
    ],
)
def test_a_list_of_files_that_is_none(bucket: Bucket, seal: bytes):
    mirror = bucket.seen_by("two")
    folder = path_here(f"{bucket.uri}/models/k")
    mirror.objects.write(mirror.key(folder) + SEAL, seal)
    with pytest.raises(DamagedError, match="is no list of files with their digests"):
        mirror.fetch_folder(folder)


def test_two_processes_of_a_machine_fetch_it_once(bucket: Bucket, model: str):
    bucket.seen_by("two")
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FETCHES, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for each in both:
        assert each.stdout.readline() == "ready\n"
    for each in both:
        each.stdin.write("go\n")
        each.stdin.flush()
    answers = [each.communicate(timeout=120)[0].split() for each in both]
    folder = path_here(model)
    assert [path for path, _ in answers] == [str(folder)] * 2
    # of the three files one is asked for by both, for it may have grown
    assert sorted(int(count) for _, count in answers) == [1, 3]
    assert content(folder) == FILES


def test_what_was_borrowed_goes_and_what_was_here_stays(bucket: Bucket, model: str):
    bucket.seen_by("two")
    with borrowed(model) as one:
        with borrowed(model) as other:
            assert one == other
            assert content(Path(one)) == FILES
        assert content(Path(one)) == FILES  # the first one reads it still
    assert not Path(one).exists()
    assert list(Path(one).parent.iterdir()) == []
    here(model)
    with borrowed(model) as again:
        assert content(Path(again)) == FILES
    assert content(Path(again)) == FILES
    with pytest.raises(StorageError, match="is not in the bucket"), borrowed(f"{model}2"):
        pytest.fail("there is none")


def test_who_may_only_read_gets_it_and_sends_nothing(bucket: Bucket, model: str):
    mirror = bucket.seen_by("two", READER)
    assert content(Path(here(model))) == FILES
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        mirror.prove(path_here(bucket.uri))
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        mirror.push_file(path_here(model) / "record.json")


def test_small_files_of_a_campaign_come_and_what_the_bucket_lacks_goes(bucket: Bucket, model: str):
    mirror = bucket.seen_by("one")
    root = path_here(bucket.uri)
    for name in SMALL[:1] + SMALL[3:]:
        (root / name).write_text("name: a")
        mirror.push_file(root / name)
    other = bucket.seen_by("two")
    there = path_here(bucket.uri)
    fill(other, f"{bucket.uri}/models/stale", {"record.json": b"{}"})
    (there / "result.json").write_text("of another time")
    other.pull(there)
    for name in ("spec.yaml", "draws.json", "warm-start.json"):
        assert (there / name).read_text() == "name: a"
    assert not (there / "result.json").exists()
    assert content(there / "models") == {"k/record.json": b'{"n": 1}'}
    (there / "spec.yaml").unlink()
    other.push_file(there / "spec.yaml")  # gone here goes there
    bucket.seen_by("one").pull(root)
    assert not (root / "spec.yaml").exists()
    mirror.forget(root / "models" / "k")
    assert mirror.objects.names(mirror.key(root / "models")) == []
    assert not (root / "models" / "k").exists()


def test_a_record_comes_alone_and_only_of_what_is_whole(bucket: Bucket, model: str):
    mirror = bucket.seen_by("two")
    folder = path_here(model)
    assert mirror.fetch_growing(folder)
    assert content(folder) == {"record.json": b'{"n": 1}'}
    assert content(Path(here(model))) == FILES, "which does not stand for the whole"
    mirror.objects.delete(mirror.key(folder) + SEAL)
    assert not mirror.fetch_growing(folder)
    mirror.pull(path_here(bucket.uri))
    assert not folder.exists(), "who removes a seal wants it made again"


def test_a_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "a").write_text("x")
    assert here(str(tmp_path)) == str(tmp_path)
    assert path_here(str(tmp_path / "none")) == tmp_path / "none"
    with borrowed(str(tmp_path)) as folder:
        assert folder == str(tmp_path)
    mirror, path = opened(str(tmp_path))
    assert mirror.place(path) == str(tmp_path)
    mirror.push_folder(path)
    mirror.push_file(path / "none")
    mirror.pull(path)
    assert mirror.fetch_folder(path)
    assert not mirror.fetch_folder(path / "none")
    assert mirror.fetch_file(path / "a")
    assert content(tmp_path) == {"a": b"x"}
