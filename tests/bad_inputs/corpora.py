"""Text to train language models on."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from orchestrator.data.prepare import prepare_data
from orchestrator.data.prepared import describe
from orchestrator.data.text_files import read_text
from orchestrator.spec_tasks import Files
from tests.bad_inputs.case import BadInput, command, without_privileges
from tests.jobs.specs import write_spec
from tests.orchestrator.data.tasks import language_task, prose

GROUP = "Corpora"
COMPRESS = ("compress", "spec.yaml", "--task", "letters", "-o", "out")


def _content(content: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_spec(folder)
        (folder / "train.txt").write_bytes(content)

    return make


def _instead(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Something else in the file's place."""

    def made(folder: Path) -> None:
        write_spec(folder)
        (folder / "train.txt").unlink()
        make(folder / "train.txt")

    return made


def _barred(path: Path) -> None:
    path.touch(mode=0o000)


def _trained(what: str, made: Callable[[Path], None]) -> BadInput:
    return BadInput(
        group=GROUP,
        what=what,
        made=made,
        reader="lowrank compress spec.yaml",
        read=command(*COMPRESS),
        status=2,
    )


def _alone(
    what: str, made: Callable[[Path], None], path: str = "train.txt", barred: bool = False
) -> BadInput:
    def read() -> str:
        with without_privileges() if barred else nullcontext():
            return f"{len(read_text(path))} characters"

    return BadInput(group=GROUP, what=what, made=made, reader="read_text", read=read, status=2)


def _prepared(what: str, content: bytes, level: str, **fields: int) -> BadInput:
    """Unusual, and none the less text."""

    def read() -> str:
        files = Files(source="files", train="train.txt", validation="dev.txt", test="test.txt")
        task = language_task(files, level=level, **fields)
        return "read: " + describe(prepare_data(task, Path("cache"), None)).rpartition(" [")[0]

    def made(folder: Path) -> None:
        (folder / "train.txt").write_bytes(content)
        (folder / "dev.txt").write_text(prose(3, 1))
        (folder / "test.txt").write_text(prose(3, 2))

    reader = f"prepare_data, level {level}"
    return BadInput(group=GROUP, what=what, made=made, reader=reader, read=read, status=0)


CASES = [
    _trained("empty", _content(b"")),
    _trained("only line breaks", _content(b"\n" * 1000)),
    _trained("only a byte order mark", _content(b"\xef\xbb\xbf")),
    _trained("one NUL byte", _content(b"one\ntwo\0\nthree\n")),
    _trained("binary: an image", _content(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))),
    _trained("binary without NUL bytes", _content(bytes(range(255, 0, -1)) * 9)),
    _trained("invalid UTF-8 in the middle", _content(b"one\ntw\xf6\nthree\n")),
    _trained("UTF-16 with a byte order mark", _content("one\ntwo\n".encode("utf-16"))),
    _trained("cut within a character", _content("one\ntwo\nthré".encode()[:-1])),
    _trained("one line", _content(b"one line and no other\n")),
    _trained("one line of a million characters", _content(b"abcde fghi" * 100_000)),
    _trained("one line, a thousand times", _content(b"the same\n" * 1000)),
    _trained("shorter than one context", _content(b"a\nb\nc\n")),
    _trained("a missing file", _instead(lambda path: None)),
    _trained("a folder", _instead(Path.mkdir)),
    _trained("a link to itself", _instead(lambda path: path.symlink_to(path))),
    _trained("a link to a missing file", _instead(lambda path: path.symlink_to("absent"))),
    _trained("a pipe", _instead(os.mkfifo)),
    _trained("an endless device", _instead(lambda path: path.symlink_to("/dev/zero"))),
    _alone("a pipe, not by a spec", _instead(os.mkfifo)),
    _alone("an endless device, not by a spec", _content(b""), "/dev/zero"),
    _alone("a link to itself, not by a spec", _instead(lambda path: path.symlink_to(path))),
    _alone("a file that cannot be read", _content(b""), "/proc/self/mem"),
    _alone("a file without permission", _instead(_barred), barred=True),
    _alone("a path with a NUL byte", _content(b""), "a\0b"),
    _alone("a name that is too long", _content(b""), "x" * 5000),
    _prepared("a byte order mark before text", b"\xef\xbb\xbf" + prose(9).encode(), "character"),
    _prepared("a million characters in a line, as words", b"abcde fghi" * 100_000, "word"),
    _prepared("a million characters without a space", b"abcdefghij" * 100_000, "character"),
    _prepared("a million spaces", b"a b c" + b" " * 1_000_000 + b"d", "word"),
    _prepared("carriage returns and control characters", b"a\rb\x01\x1b[31m\r\n" * 99, "character"),
]
