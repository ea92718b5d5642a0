"""Which storage URIs are taken, and where their files lie here."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.bucket.uri import StorageUri, is_uri, working_folder
from orchestrator.errors import SpecError
from orchestrator.spec_io import load_spec
from tests.orchestrator.spec_texts import VALID, write_spec

REFUSED = {
    "s3://key:word@bucket/runs": "must hold no user, password or key",
    "s3://key@bucket/runs": "must hold no user, password or key",
    "s3://bucket/runs?secret_key=word": "must hold no user, password or key",
    "sftp://me:word@host/runs": "must hold no user, password or key",
    "s3://bucket/a/../b": "begin with no dot",
    "s3://bucket/a//b": "begin with no dot",
    "s3://bucket/a b": "begin with no dot",
    "s3://bucket/%2e%2e": "begin with no dot",
    "s3://": "like s3://BUCKET/PREFIX",
    "s3:///runs": "like s3://BUCKET/PREFIX",
    "S3://bucket": "like s3://BUCKET/PREFIX",
    "s3://bucket/a#b": "like s3://BUCKET/PREFIX",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text: str):
    with pytest.raises(ValueError, match=REFUSED[text]) as error:
        StorageUri.parse(text)
    assert "word" not in str(error.value).replace("password", "")


@pytest.mark.parametrize(
    ("text", "authority", "path"),
    [
        ("s3://bucket", "s3://bucket/", ""),
        ("s3://bucket/a/b-1.2/", "s3://bucket/", "a/b-1.2"),
        ("s3://bucket/a?region=eu-west-1", "s3://bucket/?region=eu-west-1", "a"),
        ("abfs://container@account/a", "abfs://container@account/", "a"),
        ("hdfs://host:8020/a", "hdfs://host:8020/", "a"),
    ],
)
def test_what_is_taken(text: str, authority: str, path: str):
    uri = StorageUri.parse(text)
    assert (uri.authority, uri.path) == (authority, path)
    assert StorageUri.parse(uri.place(path)) == uri


def test_folders_are_no_buckets():
    assert [is_uri(each) for each in ("runs", "/runs", "file:///runs", "s3://runs")] == [
        False,
        False,
        False,
        True,
    ]


def test_each_server_has_a_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOWRANK_WORK", str(tmp_path))
    uri = StorageUri.parse("s3://bucket/runs")
    first = working_folder(uri)
    assert first.parent == tmp_path
    assert first == working_folder(StorageUri.parse("s3://bucket/others"))
    assert first != working_folder(StorageUri.parse("s3://bucket/runs?region=eu-west-1"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    assert first != working_folder(uri)
    monkeypatch.delenv("LOWRANK_WORK")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert working_folder(uri).parent == tmp_path / "caches" / "lowrank"


def test_a_spec_with_a_bucket_names_its_tracking_store(tmp_path: Path):
    text = VALID + "storage: s3://bucket/runs\n"
    with pytest.raises(SpecError, match=r"tracking\.uri: must name an MLflow server"):
        load_spec(write_spec(tmp_path, text))
    spec = load_spec(write_spec(tmp_path, text + "tracking: {uri: 'http://mlflow:5000'}\n"))
    assert spec.storage == "s3://bucket/runs"


def test_a_spec_with_a_password_in_its_storage_is_refused_without_showing_it(tmp_path: Path):
    text = VALID + "storage: s3://key:word@bucket/runs\ntracking: {uri: 'http://mlflow:5000'}\n"
    with pytest.raises(SpecError, match=r"storage: must hold no user, password or key") as error:
        load_spec(write_spec(tmp_path, text))
    assert "key:word" not in str(error.value)
