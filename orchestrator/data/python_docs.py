"""The prose that ships with every Python: reference topics and the docstrings of the library.

The sources are parsed, never imported. What they hold depends on the Python version, and so
does the content hash of whatever is prepared from them.
"""

from __future__ import annotations

import ast
import functools
import sysconfig
import warnings
from collections import defaultdict
from pathlib import Path

from orchestrator.data.splits import sample
from orchestrator.data.text_files import Row
from orchestrator.errors import DataError

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

MIN_CHARACTERS = 20
"""Shorter docstrings ("Return the size.") say little about language and nothing about a package."""

MIN_PER_CLASS = 50
"""Fewer docstrings leave fewer than about five examples for the validation and test splits."""

MAX_PER_CLASS = 400
"""Of the eight largest packages of Python 3.11, tkinter has about 700 docstrings and lib2to3
about 200; the cap keeps the largest class within about twice the smallest."""

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def language_documents() -> list[str]:
    """Every reference topic, then every distinct docstring; each ends with a blank line."""
    texts = _topics() + [text for _, text in _docstrings()]
    if not texts:
        raise DataError(f"no Python sources with docstrings under {_library()}")
    return list(dict.fromkeys(text.rstrip() + "\n\n" for text in texts))


def labelled_docstrings(classes: int) -> list[Row]:
    """Docstrings with the top-level package that they come from, for the largest packages.

    Names are not masked, so a docstring that says "tkinter" gives its class away; most do not.
    A docstring that occurs in several packages belongs to none and is left out.

    Args:
        classes: How many packages. Single-file modules only join in when too few packages have
            `MIN_PER_CLASS` docstrings.

    Raises:
        DataError: When this Python does not have so many packages with docstrings.
    """
    packages: dict[str, set[str]] = defaultdict(set)
    for origin, text in _docstrings():
        packages[text].add(origin)
    members: dict[str, list[str]] = defaultdict(list)
    for text, origins in packages.items():
        if len(origins) == 1:
            members[min(origins)].append(text)
    return [
        Row((text,), name, f"docstring of {name}")
        for name in _largest(members, classes)
        for text in _sample(members[name])
    ]


def _largest(members: dict[str, list[str]], classes: int) -> list[str]:
    public = {
        name: len(texts)
        for name, texts in members.items()
        if len(texts) >= MIN_PER_CLASS and not name.startswith("_")
    }
    folders = {name: size for name, size in public.items() if (_library() / name).is_dir()}
    candidates = folders if len(folders) >= classes else public
    if len(candidates) < classes:
        raise DataError(
            f"this Python has {len(candidates)} packages with at least {MIN_PER_CLASS} "
            f"docstrings, `classes` asks for {classes}"
        )
    return sorted(candidates, key=lambda name: (-candidates[name], name))[:classes]


def _sample(texts: list[str]) -> list[str]:
    return [texts[position] for position in sample([(text,) for text in texts], MAX_PER_CLASS)]


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _topics() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        return []
    return [topics[name] for name in sorted(topics)]


@functools.cache  # parsing takes seconds, and a campaign may have several such tasks
def _docstrings() -> tuple[tuple[str, str], ...]:
    """Pairs of top-level package and docstring, in the order of the sorted paths."""
    root = _library()
    found: list[tuple[str, str]] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts):
            package = relative.parts[0].removesuffix(".py")
            found += [(package, text) for text in _docstrings_of(path)]
    return tuple(dict.fromkeys(found))


def _docstrings_of(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []  # templates and deliberate errors are no loss
    nodes = (node for node in ast.walk(tree) if isinstance(node, Documented))
    texts = (ast.get_docstring(node) or "" for node in nodes)
    return [text for text in texts if len(text) >= MIN_CHARACTERS and _is_unicode(text)]


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which an escape in a docstring can produce."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
