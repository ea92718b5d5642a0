from __future__ import annotations

from collections import Counter

import pytest

from orchestrator.data import python_docs
from orchestrator.errors import DataError


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of our own, without reference topics."""
    monkeypatch.setattr(python_docs, "_library", lambda: tmp_path)
    monkeypatch.setattr(python_docs, "_topics", list)
    monkeypatch.setattr(python_docs, "_docstrings", python_docs._docstrings.__wrapped__)
    return tmp_path


def add(library, name: str, *docstrings: str) -> None:
    path = library / name
    path.parent.mkdir(parents=True, exist_ok=True)
    functions = (f"def f{n}():\n    {text!r}\n" for n, text in enumerate(docstrings))
    path.write_text("".join(functions))


def distinct(prefix: str, number: int) -> list[str]:
    return [f"{prefix} does a thing, number {n}." for n in range(number)]


def test_real_library_gives_topics_and_docstrings() -> None:
    documents = python_docs.language_documents()
    assert len(documents) == len(set(documents)) > 2000
    assert all(document.endswith("\n\n") for document in documents)
    assert any("Truth Value Testing" in document for document in documents)


def test_sources_are_parsed_not_imported(library) -> None:
    ran = library / "ran"
    (library / "module.py").write_text(
        f'"""A module that must not run."""\nopen({str(ran)!r}, "w")\n'
    )
    assert python_docs.language_documents() == ["A module that must not run.\n\n"]
    assert not ran.exists()


def test_every_kind_of_docstring_counts_and_short_ones_do_not(library) -> None:
    (library / "a.py").write_text(
        '"""The module, in words."""\n'
        "class A:\n"
        '    """The class, in a few words."""\n'
        "    async def f(self):\n"
        '        """The coroutine, in words."""\n'
        "    def g(self):\n"
        '        """Too short."""\n'
        "    def h(self):\n"
        '        """Not Unicode: \\udc80, a surrogate."""\n'
    )
    (library / "broken.py").write_text("def (:")
    assert [text.rstrip() for text in python_docs.language_documents()] == [
        "The module, in words.",
        "The class, in a few words.",
        "The coroutine, in words.",
    ]


def test_tests_and_installed_packages_are_skipped(library) -> None:
    for folder in ("test", "pkg/tests", "site-packages/x", "dist-packages", "idlelib/idle_test"):
        add(library, f"{folder}/m.py", f"In {folder}, to be skipped.")
    add(library, "pkg/m.py", "In pkg, a docstring to be kept.")
    assert python_docs.language_documents() == ["In pkg, a docstring to be kept.\n\n"]


def test_no_sources_is_an_error(library) -> None:
    with pytest.raises(DataError, match="no Python sources with docstrings"):
        python_docs.language_documents()


def test_classes_are_the_largest_packages(library) -> None:
    add(library, "large/m.py", *distinct("large", 70))
    add(library, "small/m.py", *distinct("small", 60))
    add(library, "smallest/m.py", *distinct("smallest", 55))
    add(library, "_private/m.py", *distinct("private", 90))
    add(library, "single.py", *distinct("single", 80))
    counts = Counter(row.label for row in python_docs.labelled_docstrings(2))
    assert counts == {"large": 70, "small": 60}


def test_modules_join_in_when_packages_are_too_few(library) -> None:
    add(library, "large/m.py", *distinct("large", 70))
    add(library, "single.py", *distinct("single", 80))
    assert {row.label for row in python_docs.labelled_docstrings(2)} == {"large", "single"}
    with pytest.raises(DataError, match=r"has 2 packages .* `classes` asks for 3"):
        python_docs.labelled_docstrings(3)


def test_docstring_of_several_packages_belongs_to_none(library) -> None:
    common = "Return what both of them return."
    add(library, "one/m.py", common, *distinct("one", 60))
    add(library, "two/m.py", common, *distinct("two", 60))
    assert common not in {row.texts[0] for row in python_docs.labelled_docstrings(2)}


def test_large_classes_are_capped(library) -> None:
    add(library, "large/m.py", *distinct("large", python_docs.MAX_PER_CLASS + 100))
    add(library, "small/m.py", *distinct("small", 60))
    counts = Counter(row.label for row in python_docs.labelled_docstrings(2))
    assert counts == {"large": python_docs.MAX_PER_CLASS, "small": 60}
