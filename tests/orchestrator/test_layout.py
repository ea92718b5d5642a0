"""Folders of a campaign, what is said when they cannot be used, and the lock."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import StorageError
from orchestrator.layout import Layout, storage_error

HOLD = """
import sys
from pathlib import Path
from orchestrator.layout import Layout
with Layout(Path(sys.argv[1]), "campaign").locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path, "campaign")
    made.create()
    return made


def test_everything_lies_under_the_storage(layout: Layout):
    assert {path.name for path in layout.root.iterdir()} == {"models", "train", "tune"}
    assert layout.cache.is_dir()
    assert layout.record("k") == layout.root / "models" / "k" / "record.json"
    shared = {layout.cache, layout.artifacts}
    assert all(path.parent == layout.storage for path in shared)
    own = {layout.spec, layout.result, layout.report, layout.train, layout.tune}
    assert all(path.parent == layout.root for path in own)


def test_creating_again_keeps_what_is_there(layout: Layout):
    record = layout.record("k")
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    layout.create()
    assert record.read_text() == "{}"


@pytest.mark.parametrize("blocked", ["storage", "storage/campaign", "storage/campaign/models"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, blocked: str):
    path = tmp_path / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    with pytest.raises(StorageError, match="a part of the path is a file, not a folder"):
        Layout(tmp_path / "storage", "campaign").create()
    assert path.read_text() == "in the way"


def test_a_folder_that_takes_no_files():
    """/proc, where not even root may make one."""
    with pytest.raises(StorageError, match=r"^storage: cannot write /proc/campaign: "):
        Layout(Path("/proc"), "campaign").create()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission to write there"):
        Layout(tmp_path, "campaign").create()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left on the device"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "no permission to write there"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_errors_of_the_system_in_words(code: int, words: str):
    error = storage_error(Path("/there"), OSError(code, os.strerror(code)))
    assert str(error) == f"storage: cannot write /there: {words}"


def test_the_lock_refuses_a_second_process_and_ends_with_the_first(layout: Layout):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(layout.storage)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(StorageError, match=f"'campaign' is being run by process {holder.pid};"),
            layout.locked(),
        ):
            pytest.fail("two drivers")
        # another campaign in the same storage is nobody's business
        other = Layout(layout.storage, "other")
        other.create()
        with other.locked():
            pass
        holder.kill()
        holder.wait()
        with layout.locked():  # a killed process holds nothing
            assert (layout.root / ".lock").read_text() == str(os.getpid())


def test_the_lock_is_free_again_after_an_error(layout: Layout):
    with pytest.raises(RuntimeError), layout.locked():
        raise RuntimeError
    with layout.locked():
        pass
