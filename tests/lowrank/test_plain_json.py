"""JSON files that are there whole or not at all."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank.plain_json import read_json, write_json

NO_ROOM = """
import resource, sys
from pathlib import Path
from lowrank.plain_json import write_json

resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # as a disk that is full after so many bytes
write_json(Path(sys.argv[1]), ["x" * 1000])
"""


def test_what_is_written_is_read(tmp_path: Path):
    path = tmp_path / "a.json"
    for value in ({"a": [1, 2.5, None, "ü"]}, []):
        write_json(path, value)
        assert read_json(path) == value
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": -math.inf}])
def test_numbers_that_json_lacks_leave_the_file_as_it_was(tmp_path: Path, value: object):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, value)
    assert read_json(path) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, str(path)], capture_output=True, text=True, check=False
    )
    assert "OSError" in done.stderr
    assert read_json(path) == [1]
